"""What the console script does besides serving: a configuration checked, a token made, sessions moved."""

import asyncio
import functools
import inspect
import json
import os
import resource
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import jwt

import broker
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
SIGNING_OPTIONS = {
    "ttl": "SECONDS: how long it is valid; 3600 for a token, 86400 for links unless given",
    "aud": "NAME: what the servers' --jwt-audience says, where it says something",
    "jwt_secret_file": "FILE: sign with this secret (HS256)",
    "jwt_private_key_file": "FILE: or with this private key, PEM (RS256, ES256, EdDSA)",
    "kid": "NAME: which key that is, where the servers' keys have names",
}
TOKEN_OPTIONS = {
    "sid": "ID|ID,ID|*: the sessions it is for; * for all",
    "scope": f"{'|'.join(SCOPES)}: what it allows; each includes those before it",
    "sub": "ID: the participant whose it is, or a user's name for the history",
} | SIGNING_OPTIONS
LINKS_OPTIONS = {
    "session": "ID: the session that they open",
    "url": "URL: the page's address as those have it who open them; http://127.0.0.1:8080/ unless given",
} | SIGNING_OPTIONS
MIGRATE_OPTIONS = {"prefix": "PREFIX: what all keys begin with, at both; empty unless given"}
LINKS_TTL_S = 24 * 3600
ANSWER_WITHIN_S = 10
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
    broker.check_url(settings.broker)
    TokenKeys.read(settings.jwt_secret_file, settings.jwt_public_key_file)
    return settings


def doctor(args: Sequence[str]) -> None:
    """lockstep doctor [SETTINGS]

    Look at what a process with these settings needs, Redis above all; each line is ok or says what to do.
    """
    settings = _settings(args)
    findings = [_descriptors(settings), *asyncio.run(broker.examine(settings))]
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
    given = _given(args, TOKEN_OPTIONS, "token", ("sid", "scope"))
    claims = {"sid": _sid(given["sid"]), "scope": _scope(given["scope"], given.get("sub"))}
    claims |= {"sub": given["sub"]} if "sub" in given else {}
    print(_signed(claims, given, _ttl_s(given.get("ttl", "3600"))))


def migrate(args: Sequence[str]) -> None:
    """lockstep migrate FROM TO [--prefix=PREFIX]

    Copy all sessions, with their histories and deadlines, from one Redis (or Cluster) to another, and compare
    them, while no process runs on either. FROM is left as it is. What was interrupted can be begun again.
    """
    if len(args) < 2 or any(arg.startswith("-") for arg in args[:2]):
        raise SettingsError("the URLs of two Redis are needed: lockstep migrate FROM TO")
    given = _given(args[2:], MIGRATE_OPTIONS, "migrate", ())
    prefix = given.get("prefix", os.environ.get("LOCKSTEP_PREFIX", ""))
    try:
        asyncio.run(broker.migrate(args[0], args[1], prefix, functools.partial(print, flush=True)))
    except ValueError as error:
        raise SettingsError(f"migrate: {error}") from None
    except KeyboardInterrupt:
        raise SettingsError("migrate: interrupted; begun again it goes on where it was") from None


def links(args: Sequence[str]) -> None:
    """lockstep links --session=ID [--url=URL] --jwt-secret-file=FILE

    Ask the server at URL for a session, and print links to it, with tokens: for its host, whose page can hand
    on the others; for those who watch; for each participant.
    """
    given = _given(args, LINKS_OPTIONS, "links", ("session",))
    session_id = given["session"].lower()
    if not UUID.fullmatch(session_id):
        raise SettingsError(f"--session: {session_id!r} is no session id (a UUID)")
    ttl_s = _ttl_s(given.get("ttl", str(LINKS_TTL_S)))
    page = given.get("url", "http://127.0.0.1:8080").rstrip("/")

    def token_for(scope: str, **claims: str) -> str:
        return _signed({"sid": session_id, "scope": scope, **claims}, given, ttl_s)

    view = token_for("view")
    state = _state(f"{page}/v1/sessions/{session_id}", view)
    names = state["metadata"].get("names")
    players = [participant["participant_id"] for participant in state["participants"]]
    play = {id_: token_for("play", sub=id_) for id_ in players}
    others = {"view": view} | {f"play.{id_}": each for id_, each in play.items()}

    def link(**fields: str) -> str:
        return f"{page}/?session={session_id}#{urlencode(fields)}"

    rows = [("host", link(token=token_for("control"), **others)), ("watching", link(token=view))]
    for id_, each in play.items():
        rows.append((names.get(id_, id_) if isinstance(names, dict) else id_, link(token=each)))
    for name, url in rows:
        print(f"{name}\n    {url}")


def _state(url: str, token: str) -> dict[str, Any]:
    """A session's state, asked of a server by REST. Raises SettingsError where it is not to be had."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise SettingsError(f"--url: {url!r} is not http:// or https://")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_WITHIN_S) as answer:
            state: dict[str, Any] = json.loads(answer.read())["data"]
            return state
    except urllib.error.HTTPError as error:
        hint = {401: "it has another key than these links", 404: "it has no such session"}.get(error.code)
        raise SettingsError(f"--url: {url} answers {error.code}{': ' if hint else ''}{hint or ''}") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SettingsError(f"--url: {url} gives no session: {error}") from None


def _given(
    args: Sequence[str], options: Mapping[str, str], command: str, needed: Sequence[str]
) -> dict[str, str]:
    given = read_flags(args, options, command)
    for name, value in given.items():
        if not value:
            raise SettingsError(f"{flag_of(name)}=: options are given as --name=value")
    for name in needed:
        if name not in given:
            raise SettingsError(f"{flag_of(name)} is needed: {options[name]}")
    return given


def _signed(claims: dict[str, Any], given: Mapping[str, str], ttl_s: int) -> str:
    now_s = int(time.time())
    whole = claims | {"iat": now_s, "exp": now_s + ttl_s} | ({"aud": given["aud"]} if "aud" in given else {})
    key, algorithm = _signing_key(given)
    headers = {"kid": given["kid"]} if "kid" in given else None
    return jwt.encode(whole, key, algorithm=algorithm, headers=headers)


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
    "links": links,
    "migrate": migrate,
}
OPTIONS = {"token": TOKEN_OPTIONS, "links": LINKS_OPTIONS, "migrate": MIGRATE_OPTIONS}


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
        if word in OPTIONS:
            options = "\n".join(f"  {flag_of(name):<24} {text}" for name, text in OPTIONS[word].items())
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
