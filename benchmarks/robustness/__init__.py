# SPDX-License-Identifier: Apache-2.0
"""Behaviour of the gateway with hostile image files: `python -m benchmarks.robustness`."""
