# SPDX-License-Identifier: Apache-2.0
"""Sample pictures and data of our own, to try the server without anybody else's photos."""
