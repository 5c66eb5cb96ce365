# SPDX-License-Identifier: Apache-2.0
"""Decodes image files within limits, in worker processes that may be killed."""
