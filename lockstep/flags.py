"""Flags of a command line: --name=value, or --name value."""

import argparse
import difflib
from collections.abc import Iterable, Sequence

from lockstep.setting import SettingsError


def read_flags(args: Sequence[str], names: Iterable[str], command: str = "") -> dict[str, str]:
    """The values of --name=value (or --name value) by name: settings, or the options of a `command`.

    Raises SettingsError for anything else.
    """
    names = [*names]
    noun, of_command = ("option", f" of {command}") if command else ("setting", "")
    parser = argparse.ArgumentParser(
        allow_abbrev=False, add_help=False, exit_on_error=False, argument_default=argparse.SUPPRESS
    )
    for name in names:
        parser.add_argument(*dict.fromkeys((flag_of(name), f"--{name}")), dest=name)
    try:
        known, others = parser.parse_known_args(args)
    except argparse.ArgumentError as error:  # it has no value
        others = [str(error.argument_name).partition("/")[0]]
    for arg in others:
        flag, equals, _ = arg.partition("=")
        if not flag.startswith("--") or not equals:
            raise SettingsError(f"{arg}: {noun}s are given as --name=value")
        raise SettingsError(f"{flag}: no such {noun}{of_command}{hint(flag, flag[2:], names, command)}")
    return vars(known)


def hint(source: str, name: str, known: Iterable[str], command: str = "") -> str:
    """The nearest name, spelled as it would be where the unknown one stands."""
    meant = nearest(name.replace("-", "_"), known)
    if meant is None:
        return f"; lockstep {command + ' ' if command else ''}--help lists them"
    if source.startswith("--"):
        meant = flag_of(meant)
    elif source.startswith("LOCKSTEP_"):
        meant = "LOCKSTEP_" + meant.upper()
    return f"; did you mean {meant}?"


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one that whoever wrote `word` may have meant."""
    return next(iter(difflib.get_close_matches(word, known, 1)), None)
