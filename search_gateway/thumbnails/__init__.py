# SPDX-License-Identifier: Apache-2.0
"""How pictures from other people's servers are fetched."""
