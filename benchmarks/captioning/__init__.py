# SPDX-License-Identifier: Apache-2.0
"""Speed of captioning, compared with other libraries: `python -m benchmarks.captioning`."""
