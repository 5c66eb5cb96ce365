# SPDX-License-Identifier: Apache-2.0
"""Runs `captrieve` from a checkout: `python -m client search photo.jpg`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from captrieve_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
