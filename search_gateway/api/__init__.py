# SPDX-License-Identifier: Apache-2.0
"""The gRPC side of the search service: requests, their validation, admission, and errors as statuses."""
