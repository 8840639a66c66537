"""What is written of a run: docs/benchmarks-tables.md, and the parts of docs/benchmarks.md that come from it.

docs/benchmarks.md is written by hand, but for what stands between `<!-- run: NAME -->` and `<!-- end -->`:
the table of ratios, and the machine.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.contest import Ratio

# The columns of the table of ratios; whoever has none is named in the last one.
COLUMNS = {"limit": "C loop", "ws": "ws", "centrifuge": "centrifuge"}
HEADER = ["", "Lockstep", *COLUMNS.values(), "besides"]

# The figures in the table of ratios, in its order; the scenarios have more.
FIGURES = (
    "1 KB to 100 clients, messages per CPU-s",
    "1 KB to 1,000 clients, messages per CPU-s",
    "1 KB to 5,000 clients, messages per CPU-s",
    "1 KB to 1,000 clients, 8 at a time, messages per CPU-s",
    "1 KB to each of 50 sessions of two, messages per CPU-s",
    "1 KB to each of 1,000 sessions of two, messages per CPU-s",
    "1 KB to each of 9,000 sessions of two, messages per CPU-s",
    "4 processes, sessions of two anywhere, messages per CPU-s",
    "4 processes, sessions of two anywhere, routing=targeted, messages per CPU-s",
    "4 processes, sessions of two together, messages per CPU-s",
    "4 processes, --hash-by-session=yes, behind nginx, messages per CPU-s",
    "1,000 clients, 1 in flight, behind nginx, CPU us per message (less is better)",
    "4 processes, anywhere, behind nginx, messages per CPU-s",
    "handshakes per CPU-s",
    "joins per CPU-s",
    "joins of one session per CPU-s",
    "10,000 clients cut off at once, all back through nginx after s (less is better)",
    "18,000 idle connections, % of a core (less is better)",
    "18,000 idle connections, KB for each (less is better)",
    "a process without clients, wake-ups per s (less is better)",
    "a process without clients, % of a core (less is better)",
    "1,000 messages a second to 10 clients, p99 ms (less is better)",
    "Redis of 3 masters together, CPU us per change (less is better)",
    "switches by REST per CPU-s",
    "switches by REST with tokens and limits per CPU-s",
    "a switch of 2 participants to 1,000 clients by changes, CPU us (less is better)",
    "a switch of 100 participants to 1,000 clients by changes, CPU us (less is better)",
    "a switch of 1,000 participants to 1,000 clients by changes, CPU us (less is better)",
)


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def rows(ratios: Iterable[Ratio]) -> dict[str, list[str]]:
    """A line of the table for each figure that belongs there."""
    found: dict[str, dict[str, Ratio]] = {}
    for ratio in ratios:
        found.setdefault(ratio.figure, {})[ratio.to] = ratio
    return {
        figure: [
            figure,
            next(iter(by_name.values())).ours,
            *(f"{by_name[name].value:.2f}" if name in by_name else "" for name in COLUMNS),
            ", ".join(
                f"{name} {ratio.value:.2f}" for name, ratio in by_name.items() if name and name not in COLUMNS
            ),
        ]
        for figure, by_name in found.items()
        if figure in FIGURES
    }


def rows_of(text: str) -> dict[str, list[str]]:
    """The lines of a table of ratios that was written before."""
    cells = ([each.strip() for each in row.strip().strip("|").split("|")] for row in text.splitlines())
    return {row[0]: row for row in cells if row[0] in FIGURES}


def table(rows: Mapping[str, list[str]]) -> str:
    rule = ["---", *("---:" for _ in HEADER[2:]), "---"]
    ordered = (rows[figure] for figure in FIGURES if figure in rows)
    return "\n".join(map(line, (HEADER, rule, *ordered)))


def part(page: str, name: str) -> str:
    """What stands between the marks; empty where there are none."""
    found = re.search(rf"<!-- run: {name} -->\n(.*?)<!-- end -->", page, re.DOTALL)
    return found[1] if found else ""


def with_part(page: str, name: str, text: str) -> str:
    marked = f"<!-- run: {name} -->\n{text.strip()}\n<!-- end -->"
    return re.sub(rf"<!-- run: {name} -->\n.*?<!-- end -->", lambda _: marked, page, flags=re.DOTALL)


def write_front(file: Path, ratios: Iterable[Ratio], run: str, is_whole: bool) -> list[str]:
    """Bring the run into the page; a run of some scenarios changes their lines alone. What is missing."""
    page = file.read_text()
    lines = ({} if is_whole else rows_of(part(page, "ratios"))) | rows(ratios)
    page = with_part(page, "ratios", table(lines))
    if is_whole:
        page = with_part(page, "machine", run)
    file.write_text(page)
    return [figure for figure in FIGURES if figure not in lines]


def sections_of(page: str) -> dict[str, str]:
    """The sections of a page by their titles; what stands before the first one has none."""
    head, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    return {"": head} | {each.partition("\n")[0]: f"## {each}" for each in sections}
