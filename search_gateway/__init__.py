# SPDX-License-Identifier: Apache-2.0
"""The gRPC gateway: photo -> caption -> query -> search -> refined results. Run: `python -m search_gateway`."""
