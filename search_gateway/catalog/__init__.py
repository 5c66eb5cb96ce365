# SPDX-License-Identifier: Apache-2.0
"""Stores and searches catalogues of the user's own products."""
