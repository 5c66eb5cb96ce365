# SPDX-License-Identifier: Apache-2.0
"""Speed of captioning beside other libraries: `python -m benchmarks.captioning`."""
