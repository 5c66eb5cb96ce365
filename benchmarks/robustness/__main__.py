# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.robustness`."""

import sys

from benchmarks.robustness.command import main

if __name__ == "__main__":
    sys.exit(main())
