# SPDX-License-Identifier: Apache-2.0
"""Hostile image files: `python -m benchmarks.robustness`."""
