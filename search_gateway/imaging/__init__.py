# SPDX-License-Identifier: Apache-2.0
"""How the bytes of an image file become pixels: limits, and worker processes that may be killed."""
