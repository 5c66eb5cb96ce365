# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.gpu_report`."""

import sys

from benchmarks.gpu_report.command import main

if __name__ == "__main__":
    sys.exit(main())
