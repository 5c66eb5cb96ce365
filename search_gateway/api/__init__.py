# SPDX-License-Identifier: Apache-2.0
"""What comes in over gRPC: the search service, validation of requests, admission, errors as statuses."""
