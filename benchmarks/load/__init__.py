# SPDX-License-Identifier: Apache-2.0
"""The gateway under load: `python -m benchmarks.load`."""
