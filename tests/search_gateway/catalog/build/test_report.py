# SPDX-License-Identifier: Apache-2.0
"""Tests of what a build says of itself."""

from __future__ import annotations

from search_gateway.catalog.build.photo import TOO_LARGE
from search_gateway.catalog.build.photo_folder import UnreadablePhoto
from search_gateway.catalog.build.report import BuildReport


def test_report_tells_people_what_happened() -> None:
    report = BuildReport(
        added=1200,
        updated=3,
        untitled=2,
        titles_kept=1,
        titles_without_photo=1,
        examples_without_title=["'a.jpg'", "'b.jpg'"],
        examples_without_photo=["line 3 'x'"],
        unreadable=[UnreadablePhoto("a.jpg", f"{TOO_LARGE}: 9 bytes")],
        seconds=1.26,
    )
    assert report.summary().splitlines() == [
        "1,200 added, 3 updated, 0 unchanged, 0 removed in 1.3 s",
        "2 photos have no title in the list: their file names are used (e.g. 'a.jpg', 'b.jpg')",
        "1 photos have no title in the list: former titles are kept (e.g. 'a.jpg', 'b.jpg')",
        "1 titles of the list have no photo (e.g. line 3 'x')",
        "1 left out, too large (e.g. a.jpg)",
    ]


def test_an_update_is_told_in_one_line() -> None:
    report = BuildReport(added=10, updated=10, renamed=10, unchanged=39_868, removed=10, seconds=4.25)
    assert report.summary() == "10 added, 10 updated, 10 renamed, 39,868 unchanged, 10 removed in 4.2 s"
