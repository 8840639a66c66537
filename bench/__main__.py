"""All contests, written to docs/benchmarks-tables.md and docs/benchmarks.md; or one of them to stdout:

python -m bench [--rounds N] [--seconds S]      everything, 40 minutes on two cores
python -m bench --scenarios fanout rooms        these two; the rest of both pages stays as it is
python -m bench fanout --clients 1000 --only lockstep limit    one figure, to stdout
"""

import argparse
import importlib
import shlex
import sys
import time
from pathlib import Path
from types import ModuleType

from bench import contest, machine, page

SCENARIOS = (
    *("fanout", "rooms", "processes", "nginx", "joins", "storm", "idle", "latency", "rest", "commands"),
    *("changes", "connect", "masters", "redis_costs", "resume", "rings", "slow", "hostile", "lag", "clients"),
)

HEAD = """# Benchmarks: the tables

`{command}` wrote this page; [benchmarks.md](benchmarks.md) says what it comes to, and how it was measured.
"rounds" is how far the rounds lie apart; a ratio is the median of the rounds' own ratios.

{run}

"""


def scenarios() -> dict[str, ModuleType]:
    return {name: importlib.import_module(f"bench.{name}") for name in SCENARIOS}


def options_of(scenario: ModuleType, arguments: list[str]) -> argparse.Namespace:
    parser = contest.parser_of(scenario, add_help=False)
    # What it does not know belongs to the run as a whole, and was checked there.
    return parser.parse_known_args(arguments)[0]


def section(scenario: ModuleType, tables: list[contest.Table], options: argparse.Namespace) -> str:
    words = (scenario.__doc__ or "").partition("\n\n")[2].strip()
    rounds = "One round." if options.rounds == 1 else f"Medians of {options.rounds} rounds."
    return "\n".join(
        [
            *(f"## {scenario.TITLE}", "", words, "", rounds),
            *("", *(table.markdown() for table in tables)),
        ]
    )


def run_all(options: argparse.Namespace, arguments: list[str], docs: Path) -> None:
    """All scenarios, for new pages; or those of --scenarios, whose parts of the pages are new then."""
    machine.raise_file_limit()
    file, began_s = docs / "benchmarks-tables.md", time.monotonic()
    parts: dict[str, str] = page.sections_of(file.read_text()) if options.scenarios else {}
    run = contest.environment()
    if not options.scenarios:
        parts[""] = HEAD.format(command=shlex.join(["python", "-m", "bench", *arguments]), run=run)
    titles = ["", *(scenario.TITLE for scenario in scenarios().values())]
    ratios: list[contest.Ratio] = []
    failed, missing = [], []
    for name, scenario in scenarios().items():
        if options.scenarios and name not in options.scenarios:
            continue
        print(f"== {name}, {(time.monotonic() - began_s) / 60:.0f} min", file=sys.stderr, flush=True)
        chosen = options_of(scenario, arguments)
        try:
            tables: list[contest.Table] = scenario.run(chosen)
        except Exception as error:  # the other scenarios took their time; they are kept
            print(f"{name}: {error!r}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        parts[scenario.TITLE] = section(scenario, tables, chosen)
        for table in tables:
            print(table.markdown(), flush=True)
            ratios += table.ratios
            if table.plot:
                (docs / table.plot.file).write_text(contest.svg(table.plot))
        # What is done is kept, whatever becomes of the rest.
        file.write_text("\n".join(parts[title].rstrip("\n") + "\n" for title in titles if title in parts))
        missing = page.write_front(docs / "benchmarks.md", ratios, run, is_whole=not options.scenarios)
    print(f"written to {docs}, after {(time.monotonic() - began_s) / 60:.0f} min", file=sys.stderr)
    if missing:
        print("not measured:", *missing, sep="\n  ", file=sys.stderr)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def main() -> None:
    arguments = sys.argv[1:]
    if arguments and arguments[0] in SCENARIOS:
        contest.main(importlib.import_module(f"bench.{arguments[0]}"), arguments[1:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    contest.common_options(parser)
    parser.add_argument(
        "--scenarios", nargs="+", choices=SCENARIOS, help="only these; the rest of the pages stays"
    )
    parser.add_argument("--to", type=Path, default=machine.ROOT / "docs", help="the folder of the pages")
    options = parser.parse_args(arguments)
    run_all(options, arguments, options.to)


if __name__ == "__main__":
    main()
