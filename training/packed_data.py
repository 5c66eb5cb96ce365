# SPDX-License-Identifier: Apache-2.0
"""Pack a product set into one file: `python -m training.packed_data --data FOLDER --output fashion.zip`.

The file is a ZIP in the layout of the small Kaggle set: each product's `images/<id>.jpg`, then `styles.csv` (its ten
columns; UTF-8, commas quoted) with the rows in the order of the photos. The photos are copied byte for byte and not
compressed again. All times are 1980-01-01, so the same set gives the same file. Every command's --data accepts the file
in place of a folder.

Rows that cannot be used and rows without a photo are left out and counted. Photos are not decoded.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from training.prepare_data import STYLE_COLUMNS, StyleRow, read_rows
from training.product_files import (
    MAX_PHOTO_BYTES,
    DataError,
    ProductFiles,
    UnreadableFileError,
    open_files,
    read_photo,
)

_NO_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest time that a ZIP can hold
_UNIX = 3
_MODE = 0o100644 << 16  # a file, rw-r--r--


@dataclass(frozen=True)
class PackingReport:
    """The result of `pack`."""

    num_products: int  # in the file
    num_bytes: int  # size of the file
    skipped: Counter[str]  # reason -> how many rows were left out


def pack(data: Path, output: Path, *, limit: int | None = None, progress: bool = False) -> PackingReport:
    """Write a set to one file, which appears only when it is complete.

    Args:
        data: a folder or a packed file.
        output: the file to write.
        limit: pack only the first `limit` usable rows.
        progress: show a progress bar on stderr.

    Returns:
        What was packed.

    Raises:
        DataError: `data` is not in a known layout, or has no photo.
        OSError: `output` cannot be written.
    """
    skipped: Counter[str] = Counter()
    # The process id is part of the name, so that two runs do not write into one file.
    aside = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        with open_files(data) as files:
            rows = list(read_rows(files, str(data), skipped, progress=progress))
            with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
                packed = _pack_rows(files, rows, archive, skipped, limit, progress)
        if not packed:
            raise DataError(f"no product of {data} has a photo ({dict(skipped)}): give --data another set")
        os.replace(aside, output)
    finally:
        aside.unlink(missing_ok=True)
    return PackingReport(packed, output.stat().st_size, skipped)


def _pack_rows(
    files: ProductFiles,
    rows: list[StyleRow],
    archive: zipfile.ZipFile,
    skipped: Counter[str],
    limit: int | None,
    progress: bool,
) -> int:
    """Add the rows and their photos to the archive; return how many have a photo."""
    # styles.csv goes last, since only then all photos have been read.
    packed: list[StyleRow] = []
    for row in tqdm(rows, desc="packing", unit="photo", disable=not progress):
        if len(packed) == limit:
            break
        try:
            name, photo = read_photo(files, row["id"])
        except FileNotFoundError:
            skipped["no photo"] += 1
        except UnreadableFileError:
            skipped["unreadable photo"] += 1
        else:
            if len(photo) > MAX_PHOTO_BYTES:
                skipped["photo too large"] += 1
                continue
            _add(archive, name, photo)
            packed.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, STYLE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(packed)
    _add(archive, "styles.csv", text.getvalue().encode())
    return len(packed)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    member = zipfile.ZipInfo(name, _NO_TIME)
    member.create_system, member.external_attr = _UNIX, _MODE  # the same on every system
    archive.writestr(member, data)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in a Kaggle layout, or a packed file")
    parser.add_argument("--output", type=Path, required=True, help="the ZIP file to write")
    parser.add_argument("--limit", type=int, metavar="N", help="pack only the first N products")
    parser.add_argument("--progress", action="store_true", help="show a progress bar")
    parser.add_argument("--force", action="store_true", help="replace an existing output file")
    args = parser.parse_args(arguments)
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit is {args.limit}: give 1 or more")
    if args.output.is_dir():
        parser.error(f"--output {args.output} is a folder: name the file to write")
    if args.output.exists() and not args.force:
        parser.error(f"--output {args.output} already exists: name another file, or give --force to replace it")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = parse_args(arguments)
    try:
        report = pack(args.data, args.output, limit=args.limit, progress=args.progress)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{args.output}: {report.num_products:,} products, {report.num_bytes / 1e6:,.1f} MB")
    for reason, count in sorted(report.skipped.items()):
        print(f"  left out: {count:,} rows, {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
