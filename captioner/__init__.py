# SPDX-License-Identifier: Apache-2.0
"""What training, export and serving must agree on: the model contract, preprocessing, the tokenizer and the query."""

__version__ = "0.1.0"
