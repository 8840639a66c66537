"""Tokens (JWT, RFC 7519): making them for others, and having a good one oneself."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable
from typing import TypeAlias

import jwt

from lockstep_client.types import Scope

TokenSource: TypeAlias = str | Callable[[], str]
"""A token, or a function that gives one: called for the first, and for the next before that runs out."""

AsyncTokenSource: TypeAlias = str | Callable[[], str | Awaitable[str]]
"""The same where the function may be a coroutine function."""

RENEW_BEFORE_S = 60.0
"""A token is exchanged so long before it runs out; one of less than two minutes, halfway."""

_TOKEN = re.compile(r"[\w.-]+", re.ASCII)


def mint_token(
    secret: str | bytes,
    *,
    session_ids: str | Sequence[str] = "*",
    scope: Scope = "view",
    subject: str | None = None,
    lifetime_s: float = 3600,
    audience: str | None = None,
    issuer: str | None = None,
) -> str:
    """A token for a server that was started with this secret (`--jwt-secret-file`), signed with HS256.

    `session_ids` is what the token is for: one session, several, or `*` for all. `scope` is what it allows:
    to watch (view), to end one's own turn (play; `subject` is then the participant's id), to direct
    (control), or everything (admin), which is for back ends. `audience` and `issuer` are needed where the
    server asks for them. Raises ValueError on a secret that is shorter than the 32 bytes which the server
    asks for.
    """
    key = secret.encode() if isinstance(secret, str) else secret
    key = key.strip()  # as the server reads its file, which may end with a line break
    if len(key) < 32:
        raise ValueError("a secret needs 32 bytes or more")
    now_s = time.time()
    claims: dict[str, object] = {
        "sid": session_ids if isinstance(session_ids, str) else list(session_ids),
        "scope": scope,
        "iat": int(now_s),
        "exp": int(now_s + lifetime_s),
    }
    others = {"sub": subject, "aud": audience, "iss": issuer}
    claims |= {name: value for name, value in others.items() if value is not None}
    return jwt.encode(claims, key, algorithm="HS256")


def expiry_s(token: str) -> float | None:
    """When a token runs out, in epoch seconds; None where it does not say so, or is none of ours to read."""
    try:
        expiry = jwt.decode(token, options={"verify_signature": False}).get("exp")
    except (jwt.InvalidTokenError, ValueError):
        return None
    return float(expiry) if isinstance(expiry, int | float) else None


def checked(token: object) -> str:
    """Raises ValueError on what cannot be sent as a token."""
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise ValueError("token is not a JWT, nor a function that gives one")
    return token


class Credentials:
    """The token in use, if one is needed. Who may wait for it asks the function that gives the next."""

    def __init__(self, source: AsyncTokenSource | None) -> None:
        self.source = None if isinstance(source, str) else source
        """What is asked for the next token; None where there is nothing to ask."""
        self._token = checked(source) if isinstance(source, str) else None
        self._renew_at_s = float("inf")

    @property
    def token(self) -> str | None:
        """None where none is needed, or where it is time for the next."""
        if self.source is not None and time.time() >= self._renew_at_s:
            return None
        return self._token

    def ask(self) -> object:
        """What the function gives, which may have to be awaited."""
        assert self.source is not None
        return self.source()

    def take(self, token: object) -> str:
        """From now on it is in use."""
        now_s = time.time()
        token = checked(token)
        ends_at_s = expiry_s(token)
        self._token = token
        if ends_at_s is None:
            self._renew_at_s = float("inf")
        else:
            self._renew_at_s = ends_at_s - min(RENEW_BEFORE_S, (ends_at_s - now_s) / 2)
        return token

    def refuse(self, token: str | None) -> bool:
        """The server does not take it. True if another can be asked for."""
        if self.source is None:
            return False
        if token == self._token:
            self._token = None
        return True


class AsyncTokens:
    """Credentials for several who need a token at once: the function that gives them is asked once."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._asking = asyncio.Lock()

    @property
    def is_renewable(self) -> bool:
        return self._credentials.source is not None

    async def token(self, other_than: str | None = None) -> str | None:
        """The one in use; the next where it is time for it, or another is wanted. None: none is needed."""
        async with self._asking:
            token = self._credentials.token
            if not self.is_renewable or (token is not None and token != other_than):
                return token
            given = self._credentials.ask()
            return self._credentials.take(await given if isawaitable(given) else given)

    def refuse(self, token: str | None) -> bool:
        """The server does not take it. True if another can be asked for."""
        return self._credentials.refuse(token)
