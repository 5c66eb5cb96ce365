# SPDX-License-Identifier: Apache-2.0
"""A product set in one file, to move it about: `python -m training.packed_data --data FOLDER --output fashion.zip`.

The format is a ZIP that any tool opens, in the layout of the small Kaggle set: each product's `images/<id>.jpg`, then
`styles.csv` (its ten columns; UTF-8, commas quoted), rows in the order of the photos. Photos are the bytes they were,
so nothing is compressed. All times are 1980-01-01: the same set gives the same bytes. Every command's --data takes such
a file as it takes a folder.

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

_NO_TIME = (1980, 1, 1, 0, 0, 0)  # the first that ZIP can say
_UNIX = 3
_MODE = 0o100644 << 16  # a file, rw-r--r--


@dataclass(frozen=True)
class PackingReport:
    num_products: int
    num_bytes: int  # of the packed file
    skipped: Counter[str]  # reason -> rows


def pack(data: Path, output: Path, *, limit: int | None = None, progress: bool = False) -> PackingReport:
    """Write the set at `data` (a folder, or a packed file) to `output`, aside first, so that it is whole or not there.

    Args:
        limit: pack only the first `limit` usable rows.

    Raises:
        DataError: `data` is not in a layout we read, or has not one photo.
        OSError: `output` cannot be written.
    """
    skipped: Counter[str] = Counter()
    # The process in the name: two runs do not write into one file.
    aside = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        with open_files(data) as files:
            rows = list(read_rows(files, str(data), skipped, progress=progress))
            with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
                packed = _pack_rows(files, rows, archive, skipped, limit, progress)
        if not packed:
            raise DataError(f"not one product of {data} has a photo ({dict(skipped)}): give --data another set")
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
    """How many of `rows` went into the archive."""
    # Which rows have a photo is known only when all have been read: styles.csv goes last.
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in a Kaggle layout, or a packed file")
    parser.add_argument("--output", type=Path, required=True, help="the ZIP file to write")
    parser.add_argument("--limit", type=int, metavar="N", help="pack only the first N products")
    parser.add_argument("--progress", action="store_true", help="show a progress bar")
    parser.add_argument("--force", action="store_true", help="replace the output if it is there")
    args = parser.parse_args(arguments)
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit is {args.limit}: give 1 or more")
    if args.output.is_dir():
        parser.error(f"--output {args.output} is a folder: name the file to write")
    if args.output.exists() and not args.force:
        parser.error(f"--output {args.output} is there already: name another file, or give --force to replace it")
    return args


def main(arguments: list[str] | None = None) -> int:
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
