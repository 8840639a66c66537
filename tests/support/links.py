"""The links of Markdown files: where they lead, and which lead nowhere."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

FENCED = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?: \"[^\"]*\")?\)")
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:")


def broken_links(path: Path) -> Iterator[str]:
    """The targets in a file that are no file beside it, or no heading of the file they name."""
    text = CODE.sub("", FENCED.sub("", path.read_text()))
    for target in LINK.findall(text):
        if ELSEWHERE.match(target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and (file.suffix != ".md" or anchor not in anchors_of(file))):
            yield target


@cache
def anchors_of(path: Path) -> frozenset[str]:
    """The anchors that GitHub gives a file's headings; of headings alike the later ones are numbered."""
    anchors: set[str] = set()
    for heading in HEADING.findall(FENCED.sub("", path.read_text())):
        slug = slug_of(heading)
        number = 0
        while (anchor := f"{slug}-{number}" if number else slug) in anchors:
            number += 1
        anchors.add(anchor)
    return frozenset(anchors)


def slug_of(heading: str) -> str:
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
