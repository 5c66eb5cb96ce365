# SPDX-License-Identifier: Apache-2.0
"""Figures and the commands that print them. Each says commit and machine, and measures a peer in the same run."""
