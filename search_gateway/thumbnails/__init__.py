# SPDX-License-Identifier: Apache-2.0
"""Fetches thumbnails from other people's servers."""
