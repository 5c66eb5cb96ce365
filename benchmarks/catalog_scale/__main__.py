# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.catalog_scale`: see `sqlite_files.py`, whose functions new processes must be able to import."""

from benchmarks.catalog_scale.sqlite_files import main

if __name__ == "__main__":
    main()
