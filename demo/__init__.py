# SPDX-License-Identifier: Apache-2.0
"""The demo: a sample catalogue, and a gateway that is started, searched and stopped."""
