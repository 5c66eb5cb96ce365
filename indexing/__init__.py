# SPDX-License-Identifier: Apache-2.0
"""Builds catalogues of many millions of photos with Ray Data, on one machine or on many."""
