# SPDX-License-Identifier: Apache-2.0
"""Runs `captrieve`: `python -m captrieve_client search photo.jpg`."""

import sys

from captrieve_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
