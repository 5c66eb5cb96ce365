# SPDX-License-Identifier: Apache-2.0
"""The wire contract: `search.proto` and the stubs `make proto` writes from it."""
