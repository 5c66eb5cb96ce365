# SPDX-License-Identifier: Apache-2.0
"""Measures the containers on a host with a GPU and writes one page about it."""
