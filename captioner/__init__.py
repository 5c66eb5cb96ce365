# SPDX-License-Identifier: Apache-2.0
"""What training, export and serving share: contract, preprocessing, tokenizer, decoding, captions and query."""

__version__ = "0.1.0"
