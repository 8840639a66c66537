"""All contests, written to docs/benchmarks.md; or one of them to stdout: python -m bench [SCENARIO]

Everything but the named scenario's own options is the same for all: python -m bench --rounds 3 --seconds 2
"""

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

from bench import contest, machine

SCENARIOS = (
    *("fanout", "rooms", "processes", "joins", "idle", "latency", "rest", "commands", "changes", "connect"),
    *("resume", "rings", "slow", "hostile", "lag", "clients"),
)

HEAD = """# Benchmarks

    make bench    # sets up what it needs, and ends with what wrote this page:
    {command}

Contestants take turns, round after round.
Figures are medians of {rounds} rounds of {seconds:g} s after {warm_up:g} s of warming up; "rounds" is how far
the rounds lie apart. The server has one core; Redis and the load, a program in C, have the other. A
CPU-second is one of the server's, all threads together: unlike a second on the wall it does not depend on
who else is busy. Every message is counted at every client; what is missing, comes twice or is out of order
is noted below the table.

"limit" is a loop around `send()` in C that does nothing else; what is above it sends several messages at
once. Peers are built as their own documentation has it, with TCP_NODELAY and without compression; see
`bench/peers/`. Lockstep pings each client every 5 s; the peers do so more rarely or not at all.

"""


def scenarios() -> dict[str, ModuleType]:
    return {
        name: importlib.import_module(f"bench.{name}")
        for name in SCENARIOS
        if importlib.util.find_spec(f"bench.{name}")
    }


def options_of(scenario: ModuleType, arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False)
    contest.common_options(parser)
    if hasattr(scenario, "add_options"):
        scenario.add_options(parser)
    # What it does not know belongs to the run as a whole, and was checked there.
    return parser.parse_known_args(arguments)[0]


def section(scenario: ModuleType, tables: list[contest.Table]) -> str:
    words = (scenario.__doc__ or "").partition("\n\n")[2].strip()
    return "\n".join([f"## {scenario.TITLE}", "", words, "", *(table.markdown() for table in tables)])


def sections_of(page: str) -> dict[str, str]:
    """The page's sections by their titles; what stands before the first one has none."""
    head, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    return {"": head} | {each.partition("\n")[0]: f"## {each}" for each in sections}


def run_all(options: argparse.Namespace, arguments: list[str], to: Path) -> None:
    """All scenarios, for a new page; or those of --scenarios, whose sections it gets anew."""
    machine.raise_file_limit()
    parts: dict[str, str] = sections_of(to.read_text()) if options.scenarios else {}
    failed = []
    for name, scenario in scenarios().items():
        if options.scenarios and name not in options.scenarios:
            continue
        print(f"== {name}", file=sys.stderr, flush=True)
        try:
            tables: list[contest.Table] = scenario.run(options_of(scenario, arguments))
        except Exception as error:  # the other scenarios took an hour; they are kept
            print(f"{name}: {error!r}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        parts[scenario.TITLE] = section(scenario, tables)
        for table in tables:
            if table.plot:
                (to.parent / table.plot.file).write_text(contest.svg(table.plot))
    command = f"python -m bench --rounds {options.rounds} --seconds {options.seconds:g}"
    if options.only:
        command += f" --only {shlex.join(options.only)}"
    if not options.scenarios:
        head = HEAD.format(command=command, **vars(options))
        parts[""] = head + contest.environment() + "\n\n"
    titles = ["", *(scenario.TITLE for scenario in scenarios().values())]
    to.write_text("\n".join(parts[title].rstrip("\n") + "\n" for title in titles if title in parts))
    print(f"written to {to}", file=sys.stderr)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def main() -> None:
    arguments = sys.argv[1:]
    if arguments and arguments[0] in SCENARIOS:
        contest.main(scenarios()[arguments[0]], arguments[1:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    contest.common_options(parser)
    parser.add_argument(
        "--scenarios", nargs="+", choices=SCENARIOS, help="only these; the rest of the page stays"
    )
    parser.add_argument("--to", type=Path, default=machine.ROOT / "docs" / "benchmarks.md")
    options = parser.parse_args(arguments)
    run_all(options, arguments, options.to)


if __name__ == "__main__":
    main()
