"""What the console script does besides serving: check-config, doctor, token, and their help."""

import asyncio
import inspect
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jwt

from broker import check_url, examine
from handlers.token_keys import TokenKeys
from lockstep import __version__
from lockstep.access import Scope
from lockstep.config import Settings, masked, read_settings
from lockstep.flags import flag_of, nearest, read_flags
from lockstep.setting import SettingsError, help_of
from lockstep.wire.heads import UUID

# The files that a process opens besides its clients: listeners, Redis, the event loop, logs.
OWN_DESCRIPTORS = 64
SCOPES = tuple(scope.name.lower() for scope in Scope)
TOKEN_OPTIONS = {
    "sid": "ID|ID,ID|*: the sessions it is for; * for all",
    "scope": f"{'|'.join(SCOPES)}: what it allows; each includes those before it",
    "sub": "ID: the participant whose it is, or a user's name for the history",
    "ttl": "SECONDS: how long it is valid; 3600 unless given",
    "aud": "NAME: what the servers' --jwt-audience says, where it says something",
    "jwt_secret_file": "FILE: sign with this secret (HS256)",
    "jwt_private_key_file": "FILE: or with this private key, PEM (RS256, ES256, EdDSA)",
    "kid": "NAME: which key that is, where the servers' keys have names",
}
MAX_TTL_S = 10 * 365 * 24 * 3600


def check_config(args: Sequence[str]) -> None:
    """lockstep check-config [SETTINGS]

    Print the settings that would be in force, secrets masked, or what is wrong with them.
    """
    settings = _settings(args)
    for field in fields(settings):
        value = getattr(settings, field.name)
        shown = ("no", "yes")[value] if isinstance(value, bool) else masked(field.name, str(value))
        print(f"{field.name} = {shown}")


def _settings(args: Sequence[str]) -> Settings:
    settings = read_settings(args, os.environ)
    check_url(settings.broker)
    TokenKeys.read(settings.jwt_secret_file, settings.jwt_public_key_file)
    return settings


def doctor(args: Sequence[str]) -> None:
    """lockstep doctor [SETTINGS]

    Look at what a process with these settings needs, Redis above all; each line is ok or says what to do.
    """
    settings = _settings(args)
    findings = [_descriptors(settings), *asyncio.run(examine(settings))]
    for is_ok, text in findings:
        print(("ok    " if is_ok else "MEND  ") + text)
    if not all(is_ok for is_ok, _ in findings):
        sys.exit(1)


def _descriptors(settings: Settings) -> tuple[bool, str]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = (settings.max_connections or 10_000) + OWN_DESCRIPTORS
    if limit >= needed:
        return True, f"open files: {limit} allowed"
    return False, f"open files: {limit} allowed, {needed} needed; raise it (ulimit -n, minfds, LimitNOFILE)"


def token(args: Sequence[str]) -> None:
    """lockstep token --sid=ID --scope=SCOPE [--sub=ID] --jwt-secret-file=FILE

    Print a token for a server that was started with the same secret (or the public key).
    """
    given = read_flags(args, TOKEN_OPTIONS, "token")
    for name, value in given.items():
        if not value:
            raise SettingsError(f"{flag_of(name)}=: options are given as --name=value")
    for name in ("sid", "scope"):
        if name not in given:
            raise SettingsError(f"{flag_of(name)} is needed: {TOKEN_OPTIONS[name]}")
    now_s = int(time.time())
    claims: dict[str, Any] = {
        "sid": _sid(given["sid"]),
        "scope": _scope(given["scope"], given.get("sub")),
        "iat": now_s,
        "exp": now_s + _ttl_s(given.get("ttl", "3600")),
    }
    claims |= {name: given[name] for name in ("sub", "aud") if name in given}
    key, algorithm = _signing_key(given)
    headers = {"kid": given["kid"]} if "kid" in given else None
    print(jwt.encode(claims, key, algorithm=algorithm, headers=headers))


def _sid(text: str) -> str | list[str]:
    sids = text.split(",")
    if sids == ["*"]:
        return "*"
    for each in sids:
        if not UUID.fullmatch(each.lower()):
            raise SettingsError(f"--sid: {each!r} is no session id (a UUID), nor * for all sessions")
    return sids[0] if len(sids) == 1 else sids


def _scope(text: str, sub: str | None) -> str:
    if text not in SCOPES:
        raise SettingsError(f"--scope: {text!r} is none of {', '.join(SCOPES)}")
    if text == "play" and (sub is None or not UUID.fullmatch(sub.lower())):
        raise SettingsError("--sub: the scope play is a participant's: its participant_id (a UUID) is needed")
    return text


def _ttl_s(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and 0 < int(text) <= MAX_TTL_S):
        raise SettingsError(f"--ttl: {text!r} is not a number of seconds from 1 to {MAX_TTL_S}")
    return int(text)


def _signing_key(given: Mapping[str, str]) -> tuple[Any, str]:
    if "jwt_secret_file" in given:
        TokenKeys.read(given["jwt_secret_file"], "")
        return Path(given["jwt_secret_file"]).read_bytes().strip(), "HS256"
    if "jwt_private_key_file" in given:
        return TokenKeys.private(given["jwt_private_key_file"])
    raise SettingsError("--jwt-secret-file or --jwt-private-key-file is needed: to sign with")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "check-config": check_config,
    "doctor": doctor,
    "token": token,
}


def run_command(args: Sequence[str]) -> bool:
    """Run the command that the first word names, or print help; False if there is no command: to serve.

    Raises SettingsError for a word that is no command.
    """
    word = args[0] if args and not args[0].startswith("-") and "=" not in args[0] else None
    if "--help" in args or "-h" in args:
        print(_help(word))
    elif list(args) == ["--version"]:
        print(f"lockstep {__version__}")
    elif word in COMMANDS:
        COMMANDS[word](args[1:])
    elif word is not None:
        meant = nearest(word, COMMANDS)
        hint = (
            f"did you mean {meant}?" if meant else f"there are {', '.join(COMMANDS)}; without one it serves"
        )
        raise SettingsError(f"{word}: no such command; {hint}")
    elif late := next((arg for arg in args if arg in COMMANDS), None):
        raise SettingsError(f"{late}: a command comes first: lockstep {late} --SETTING=VALUE")
    else:
        return False
    return True


def _help(word: str | None) -> str:
    settings = (
        "Settings, with their defaults; also LOCKSTEP_PORT=8080, or port = 8080 in FILE:\n\n"
        + settings_help()
    )
    if word in COMMANDS:
        options = settings
        if word == "token":
            options = "\n".join(f"  {flag_of(name):<24} {text}" for name, text in TOKEN_OPTIONS.items())
        return f"usage: {inspect.getdoc(COMMANDS[word])}\n\n{options}"
    commands = "\n\n".join(
        inspect.cleandoc(command.__doc__ or "").replace("\n\n", "\n    ") for command in COMMANDS.values()
    )
    return (
        "usage: lockstep [--SETTING=VALUE ...] [--config=FILE]\n\nServe. Else, by a command in front:\n\n"
        f"{commands}\n\nlockstep COMMAND --help says more.\n\n{settings}"
    )


def settings_help() -> str:
    """Every setting as a flag, with its default and what it is for."""
    lines = []
    for field in fields(Settings):
        default = ("no", "yes")[field.default] if isinstance(field.default, bool) else field.default
        lines.append(f"  {f'{flag_of(field.name)}={default}':<44} {help_of(field)}")
    return "\n".join(lines)
