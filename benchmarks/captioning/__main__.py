# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.captioning`."""

import sys

from benchmarks.captioning.command import main

if __name__ == "__main__":
    sys.exit(main())
