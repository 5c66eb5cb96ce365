# SPDX-License-Identifier: Apache-2.0
"""The demo: a sample catalogue and a gateway, started, searched and stopped."""
