# SPDX-License-Identifier: Apache-2.0
"""Decides which results are kept, in what order and for what reason."""
