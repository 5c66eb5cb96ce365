# SPDX-License-Identifier: Apache-2.0
"""Behaviour of the gateway under load: `python -m benchmarks.load`."""
