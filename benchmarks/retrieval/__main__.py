# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.retrieval`."""

import sys

from benchmarks.retrieval.command import main

if __name__ == "__main__":
    sys.exit(main())
