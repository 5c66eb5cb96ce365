# SPDX-License-Identifier: Apache-2.0
"""How catalogues of up to millions of products are built and searched: files, memory, times, recall."""
