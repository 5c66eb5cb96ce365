# SPDX-License-Identifier: Apache-2.0
"""Quality of the search: `python -m benchmarks.retrieval`."""
