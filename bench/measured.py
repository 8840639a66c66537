"""The figures that docs/benchmarks-tables.md records, by table, row and column."""

import functools
import re
from pathlib import Path

TABLES = Path(__file__).parent.parent / "docs" / "benchmarks-tables.md"
SCALES = {"k": 1e3, "M": 1e6, "%": 0.01}


class Missing(LookupError):
    """The tables have no such figure."""


def figure(text: str) -> float:
    """`1.2k`, `7.4%`, `1,024`: what is written, as a number."""
    found = re.match(r"([\d,]*\.?\d+)([kM%]?)", text.strip())
    if found is None:
        raise Missing(f"not a figure: {text!r}")
    return float(found[1].replace(",", "")) * SCALES.get(found[2], 1.0)


class Tables:
    """A page of tables; each has a heading, and each row is known by its first cell."""

    def __init__(self, page: str) -> None:
        self._tables: dict[str, dict[str, dict[str, str]]] = {}
        for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
            title, _, text = section.partition("\n")
            # Not the sections behind it.
            lines = [
                line
                for line in re.split(r"^## ", text, flags=re.MULTILINE)[0].splitlines()
                if line[:1] == "|"
            ]
            cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            if cells:
                head, _, *rows = cells
                self._tables[title.strip()] = {row[0]: dict(zip(head, row, strict=True)) for row in rows}

    def text(self, table: str, row: str, column: str) -> str:
        try:
            return self._tables[table][row][column]
        except KeyError:
            raise Missing(f"{table}: {row}: {column}") from None

    def figure(self, table: str, row: str, column: str) -> float:
        return figure(self.text(table, row, column))


@functools.cache
def recorded(file: Path = TABLES) -> Tables:
    return Tables(file.read_text())
