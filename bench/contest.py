"""Contests: several servers, the same work, taken in turns, so that what disturbs the machine disturbs all.

A scenario is a module of bench/ with

    TITLE = "..."                                     the heading in docs/benchmarks-tables.md
    ROUNDS = 3                                        how many, where that is not said
    def add_options(parser: ArgumentParser) -> None   its own options, all with a default (may be left out)
    def run(options: Namespace) -> list[Table]        measures; `options` has its own and the common ones

and ends with `if __name__ == "__main__": contest.main(sys.modules[__name__])`, which makes
`python -m bench.NAME` work. The common options are `rounds`, `seconds`, `warm_up`, `only` (names of
contestants; empty: all), `checkout` (the folder Lockstep is started from) and `before` (that of an earlier
version, where a scenario compares with it). `bench/__main__.py` runs all scenarios.

To take contestants in turns: `interleaved({"Lockstep": measure, "ws": measure}, options)`, which gives the
list of what each call returned, all of the same length; `paired` makes of it a ratio, `median`, `number`,
`spread` and `Table` a table.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from bench import machine

T = TypeVar("T")

# Above this, the load's core may be what was measured.
BUSY_SHARE = 0.9


@dataclass
class Plot:
    """Groups of bars, one colour per name; it is drawn to `docs/FILE`."""

    file: str
    title: str
    groups: list[str]
    bars: dict[str, list[float | None]]
    unit: str = ""


@dataclass
class Ratio:
    """A figure of Lockstep, how it is written, and how it compares with that of another."""

    figure: str
    ours: str
    to: str
    value: float


@dataclass
class Table:
    """A heading, what was done, and what came of it; the cells are text already."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    text: str = ""
    notes: list[str] = field(default_factory=list)
    plot: Plot | None = None
    ratios: list[Ratio] = field(default_factory=list)

    def markdown(self) -> str:
        head = [f"### {self.title}", ""]
        if self.text:
            head += [self.text, ""]
        # The first column names, the others count.
        rule = ["---", *("---:" for _ in self.columns[1:])]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, rule, *self.rows)]
        notes = [line for note in self.notes for line in ("", f"Note: {note}")]
        picture = ["", f"![{self.plot.title}]({self.plot.file})"] if self.plot else []
        return "\n".join([*head, *lines, *notes, *picture, ""])


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def number(value: float) -> str:
    """Three significant digits; thousands as k."""
    if value >= 1_000_000:
        return f"{value / 1_000_000:.2f}M"
    if value >= 10_000:
        return f"{value / 1000:.0f}k"
    if value >= 1000:
        return f"{value / 1000:.1f}k"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    """How far the rounds lie apart: the widest distance from the median, in percent of it."""
    middle = median(values)
    return f"±{max(abs(value - middle) for value in values) / middle * 100:.0f} %" if middle else "-"


def ratio(value: float, reference: float | None) -> str:
    return f"{value / reference:.2f}" if reference else "-"


def paired(
    outcomes: Mapping[str, Sequence[T]], name: str, to: str, figure: Callable[[T], float]
) -> float | None:
    """The median of the rounds' own ratios: what disturbed a round disturbed both."""
    if name not in outcomes or to not in outcomes:
        return None
    pairs = zip(outcomes[name], outcomes[to], strict=True)
    return median(figure(ours) / figure(theirs) for ours, theirs in pairs)


def paired_text(outcomes: Mapping[str, Sequence[T]], name: str, to: str, figure: Callable[[T], float]) -> str:
    value = paired(outcomes, name, to, figure)
    return "-" if value is None else f"{value:.2f}"


def ratios(
    title: str,
    outcomes: Mapping[str, Sequence[T]],
    name: str,
    to: Iterable[str],
    figure: Callable[[T], float],
    shown: Callable[[float], str] = lambda value: number(value),
) -> list[Ratio]:
    """How one compares with the others that took part."""
    return [
        Ratio(title, shown(median(map(figure, outcomes[name]))), other, value)
        for other in to
        if (value := paired(outcomes, name, other, figure)) is not None
    ]


def chosen(names: Iterable[str], only: Sequence[str]) -> list[str]:
    """The contestants that --only names, by the beginning of their names, or all."""
    wanted = [name.lower() for name in only]
    return [name for name in names if not wanted or any(name.lower().startswith(each) for each in wanted)]


def interleaved(
    contestants: Mapping[str, Callable[[], T]], options: argparse.Namespace, what: str = ""
) -> dict[str, list[T]]:
    """Each contestant once per round, every round from another one on.

    What fails is said and tried once more; who fails again is left out, so that all have the same rounds.
    """
    outcomes: dict[str, list[T]] = {name: [] for name in chosen(contestants, options.only)}
    for turn in range(options.rounds):
        names = list(outcomes)
        for name in names[turn % len(names) :] + names[: turn % len(names)] if names else ():
            began_s = time.monotonic()
            for is_last in (False, True):
                try:
                    outcomes[name].append(contestants[name]())
                except Exception as error:
                    print(f"{what} {name}: {error}", file=sys.stderr, flush=True)
                    if is_last:
                        del outcomes[name]
                else:
                    took_s = time.monotonic() - began_s
                    print(f"{what} round {turn + 1} {name}: {took_s:.1f} s", file=sys.stderr, flush=True)
                    break
    return outcomes


COLOURS = ("#0b6e4f", "#8a8d91", "#d98324", "#5b7fb8", "#a34a5f", "#6f5aa7", "#b9a44c")


def svg(plot: Plot) -> str:
    """A bar chart by hand: a library for it would be the largest thing the benchmark installs."""
    bar, gap, left, top, height = 22, 34, 64, 46, 220
    group_width = bar * len(plot.bars)
    width = left + len(plot.groups) * (group_width + gap) + 10
    width = max(width, left + 120 * len(plot.bars))
    largest = max((value for values in plot.bars.values() for value in values if value), default=1.0)
    base = top + height
    style = 'font-family="sans-serif" font-size="12" fill="#333"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {base + 56}" width="{width}" {style}>',
        f'<rect width="{width}" height="{base + 56}" fill="white"/>',
        f'<text x="{left}" y="20" font-size="14" font-weight="bold">{plot.title}</text>',
    ]
    for part in range(5):
        y = base - height * part / 4
        parts.append(f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        label = number(largest * part / 4) if part else "0"
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    if plot.unit:
        parts.append(f'<text x="{left}" y="38" font-size="11">{plot.unit}</text>')
    for index, group in enumerate(plot.groups):
        x = left + gap / 2 + index * (group_width + gap)
        for place, (values, colour) in enumerate(
            zip(plot.bars.values(), itertools.cycle(COLOURS), strict=False)
        ):
            value = values[index] or 0.0
            high = height * value / largest
            box = f'x="{x + place * bar:.1f}" y="{base - high:.1f}" width="{bar - 3}" height="{high:.1f}"'
            parts.append(f'<rect {box} fill="{colour}"/>')
        parts.append(
            f'<text x="{x + group_width / 2:.1f}" y="{base + 18}" text-anchor="middle">{group}</text>'
        )
    for place, (name, colour) in enumerate(zip(plot.bars, itertools.cycle(COLOURS), strict=False)):
        x = left + place * 120
        parts.append(f'<rect x="{x}" y="{base + 32}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="{base + 42}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def common_options(parser: argparse.ArgumentParser, rounds: int | None = None) -> None:
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each contestant has its turn")
    parser.add_argument("--seconds", type=float, default=1.0, help="measured seconds per turn")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before them")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these contestants")
    parser.add_argument("--checkout", type=Path, default=machine.ROOT, help="folder to start Lockstep from")
    parser.add_argument("--before", type=Path, help="folder of an earlier version, measured beside it")


def parser_of(scenario: ModuleType, add_help: bool = True) -> argparse.ArgumentParser:
    """The options of one scenario, the common ones and its own."""
    parser = argparse.ArgumentParser(
        description=scenario.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=add_help,
    )
    common_options(parser, scenario.ROUNDS)
    if hasattr(scenario, "add_options"):
        scenario.add_options(parser)
    return parser


def environment() -> str:
    return "\n".join(f"- {name}: {version}" for name, version in machine.versions().items())


def main(scenario: ModuleType, arguments: Sequence[str] | None = None) -> None:
    """One scenario from the command line: its tables go to stdout, its progress to stderr."""
    options = parser_of(scenario).parse_args(arguments)
    machine.raise_file_limit()
    tables: list[Table] = scenario.run(options)
    print(environment(), "", *(table.markdown() for table in tables), sep="\n")
