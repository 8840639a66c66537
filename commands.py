"""What the console script does besides serving: check-config, doctor, token."""

import asyncio
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jwt

from broker import examine
from handlers.tokens import Keys
from lockstep.config import Settings, SettingsError, read_settings

MASKED = "***"
# What a process opens besides its clients: listeners, Redis, the loop, files.
OWN_DESCRIPTORS = 64
TOKEN_OPTIONS = {"sid", "scope", "ttl", "sub", "aud", "jwt_secret_file", "jwt_private_key_file", "kid"}


def check_config(args: Sequence[str]) -> None:
    """lockstep check-config [SETTINGS]: print what would be in force, or what is wrong."""
    settings = _settings(args)
    for field in fields(settings):
        print(f"{field.name} = {_shown(field.name, getattr(settings, field.name))}")


def _settings(args: Sequence[str]) -> Settings:
    settings = read_settings(args, os.environ)
    Keys.read(settings.jwt_secret_file, settings.jwt_public_key_file)
    return settings


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "broker":
        scheme, _, rest = value.partition("://")
        secret, at, place = rest.rpartition("@")
        if at:
            return f"{scheme}://{secret.partition(':')[0]}:{MASKED}@{place}"
    return str(value)


def doctor(args: Sequence[str]) -> None:
    """lockstep doctor [SETTINGS]: look at what production needs; each line ok, or what to do."""
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
    """lockstep token --sid=ID|* --scope=view|control|admin [--ttl=SECONDS] [--sub=PARTICIPANT] KEY

    KEY is --jwt-secret-file=FILE, or --jwt-private-key-file=FILE, with --kid=NAME where keys have names.
    """
    given = dict(_option(arg) for arg in args)
    for name in given:
        if name not in TOKEN_OPTIONS:
            raise SettingsError(f"--{name.replace('_', '-')}: no such option of token")
    for name in ("sid", "scope"):
        if name not in given:
            raise SettingsError(f"--{name}: is needed")
    if given["scope"] not in ("view", "control", "admin"):
        raise SettingsError(f"--scope: {given['scope']!r} is not view, control or admin")
    ttl = given.get("ttl", "3600")
    if not ttl.isdecimal() or not int(ttl):
        raise SettingsError(f"--ttl: {ttl!r} is not a number of seconds")
    sids, now_s = given["sid"].split(","), int(time.time())
    claims: dict[str, Any] = {
        "sid": sids[0] if len(sids) == 1 else sids,
        "scope": given["scope"],
        "iat": now_s,
        "exp": now_s + int(ttl),
    }
    claims |= {name: given[name] for name in ("sub", "aud") if name in given}
    key, algorithm = _signing_key(given)
    headers = {"kid": given["kid"]} if "kid" in given else None
    print(jwt.encode(claims, key, algorithm=algorithm, headers=headers))


def _signing_key(given: Mapping[str, str]) -> tuple[Any, str]:
    if "jwt_secret_file" in given:
        Keys.read(given["jwt_secret_file"], "")
        return Path(given["jwt_secret_file"]).read_bytes().strip(), "HS256"
    if "jwt_private_key_file" in given:
        return Keys.private(given["jwt_private_key_file"])
    raise SettingsError("--jwt-secret-file or --jwt-private-key-file: is needed")


def _option(arg: str) -> tuple[str, str]:
    name, equals, value = arg.partition("=")
    if not name.startswith("--") or not equals or not value:
        raise SettingsError(f"{arg}: options are given as --name=value")
    return name[2:].replace("-", "_"), value


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "check-config": check_config,
    "doctor": doctor,
    "token": token,
}
