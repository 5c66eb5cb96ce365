# SPDX-License-Identifier: Apache-2.0
"""The report of a catalogue's build, for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from search_gateway.catalog.build.photo_folder import UnreadablePhoto

NUM_EXAMPLES = 3  # named of each side of a list of titles that fits nothing


@dataclass(kw_only=True)
class BuildReport:
    """Counts what is already stored. A photo that became unreadable also counts in `removed`."""

    added: int = 0
    updated: int = 0  # photo, title, URL, price, availability or category changed
    renamed: int = 0  # the same photo under another name
    unchanged: int = 0
    removed: int = 0
    remaining: int = 0  # photos still to be read
    untitled: int = 0  # photos without a line in the list of titles: their file name is the title
    titles_kept: int = 0  # photos without a line in the list that had a title before
    titles_without_photo: int = 0  # lines of the list
    examples_without_title: list[str] = field(default_factory=list)  # photos
    examples_without_photo: list[str] = field(default_factory=list)  # lines
    unreadable: list[UnreadablePhoto] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # files that are no pictures
    seconds: float = 0.0

    def counts(self) -> str:
        """Return the counts in a few words."""
        renamed = f"{self.renamed:,} renamed, " if self.renamed else ""
        return (
            f"{self.added:,} added, {self.updated:,} updated, {renamed}{self.unchanged:,} unchanged, "
            f"{self.removed:,} removed"
        )

    def summary(self) -> str:
        """Return the whole report, several lines."""
        lines = [f"{self.counts()} in {self.seconds:.1f} s"]
        examples = f"e.g. {', '.join(self.examples_without_title)}"
        if self.untitled:
            lines.append(f"{self.untitled:,} photos have no title in the list: their file names are used ({examples})")
        if self.titles_kept:
            lines.append(f"{self.titles_kept:,} photos have no title in the list: former titles are kept ({examples})")
        if self.titles_without_photo:
            examples = ", ".join(self.examples_without_photo)
            lines.append(f"{self.titles_without_photo:,} titles of the list have no photo (e.g. {examples})")
        for kind, count in Counter(bad.kind for bad in self.unreadable).most_common():
            example = next(bad.path for bad in self.unreadable if bad.kind == kind)
            lines.append(f"{count:,} left out, {kind} (e.g. {example})")
        if self.others:
            lines.append(f"{len(self.others):,} other files are no pictures (e.g. {self.others[0]})")
        return "\n".join(lines)
