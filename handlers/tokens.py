"""What a request's token (JWT, RFC 7519) allows."""

import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from handlers.token_keys import TokenKeys
from lockstep.access import ANONYMOUS, OPEN, Access, Scope
from lockstep.errors import Unauthorized
from lockstep.rules.state_json import dumps
from lockstep.wire.heads import UUID

LEEWAY_S = 5.0
MAX_REMEMBERED = 10_000
# The end of the year 9999: later instants are cut to it, because timers could not take them.
MAX_INSTANT_S = 253_402_300_800
# The keys of limits in the store name a longer subject by a hash.
MAX_CLIENT_LENGTH = 128
_BEARER_SUBPROTOCOL = "bearer."
_SCOPES = {scope.name.lower(): scope for scope in Scope}


class Tokens:
    """Turns a request's token into what it allows.

    Verified tokens are remembered, because checking a signature is expensive.
    """

    def __init__(
        self, keys: TokenKeys | None, audience: str = "", issuer: str = "", anonymous: str = "none"
    ) -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer
        self._lets_anybody_view = anonymous == "view"
        self._known: OrderedDict[str, Access] = OrderedDict()

    def access(self, headers: Mapping[str, str], in_query: str | None) -> Access:
        """What the request's token allows; everything if none is needed. Raises Unauthorized."""
        if self._keys is None:
            return OPEN
        token = _token_of(headers) or in_query
        if not token:
            if self._lets_anybody_view:
                return ANONYMOUS
            raise Unauthorized("A token is needed", "missing")
        known = self._known.get(token)
        if known is None:
            known = self._access(token, self._keys.claims(token))
            if len(self._known) >= MAX_REMEMBERED:
                self._known.popitem(last=False)
            self._known[token] = known
        assert known.expires_at_s is not None
        if known.expires_at_s + LEEWAY_S <= time.time():
            raise Unauthorized("This token has expired", "expired")
        return known

    def _access(self, token: str, claims: dict[str, Any]) -> Access:
        """What these claims allow, which may be odd although they are signed. Raises Unauthorized."""
        now_s = time.time()
        expires_at_s = _instant(claims, "exp")
        if expires_at_s is None:
            raise _unusable("exp")
        if expires_at_s + LEEWAY_S <= now_s:
            raise Unauthorized("This token has expired", "expired")
        for name in ("nbf", "iat"):
            begins_at_s = _instant(claims, name)
            if begins_at_s is not None and begins_at_s - LEEWAY_S > now_s:
                raise Unauthorized("This token is not valid yet", "not_yet")
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if self._audience and self._audience not in audiences:
            raise Unauthorized("This token is for another audience (aud)", "audience")
        if self._issuer and claims.get("iss") != self._issuer:
            raise Unauthorized("This token is of another issuer (iss)", "issuer")
        scope, session_ids, subject = _scope(claims), _session_ids(claims), _subject(claims)
        try:
            caller = _caller(subject, session_ids, scope, claims)
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise _unusable("iss or aud") from None
        # A signature can be spelled in several ways: the caller is the same with each.
        signed = token.rpartition(".")[0]
        is_short = subject is not None and len(subject) <= MAX_CLIENT_LENGTH
        client = subject if subject and is_short else _hash(subject or signed)
        return Access(scope, session_ids, subject, expires_at_s, caller=caller, client=client)


def _instant(claims: dict[str, Any], name: str) -> float | None:
    """Epoch seconds; None if the claim is absent."""
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unusable(name)
    if isinstance(value, float) and not math.isfinite(value):
        raise _unusable(name)
    return float(max(-MAX_INSTANT_S, min(value, MAX_INSTANT_S)))


def _scope(claims: dict[str, Any]) -> Scope:
    scope = claims.get("scope")
    ours = [_SCOPES[word] for word in scope.split() if word in _SCOPES] if isinstance(scope, str) else []
    if not ours:
        raise _unusable("scope")
    return max(ours)


def _session_ids(claims: dict[str, Any]) -> frozenset[str] | None:
    sid = claims.get("sid")
    if sid == "*":
        return None
    listed = sid if isinstance(sid, list) else [sid]
    session_ids = frozenset(each.lower() for each in listed if isinstance(each, str))
    is_usable = all(isinstance(each, str) for each in listed) and all(map(UUID.fullmatch, session_ids))
    if not listed or not is_usable:
        raise _unusable("sid")
    return session_ids


def _subject(claims: dict[str, Any]) -> str | None:
    if "sub" not in claims:
        return None
    subject = claims["sub"]
    if not isinstance(subject, str) or not subject:
        raise _unusable("sub")
    try:
        subject.encode()
    except UnicodeEncodeError:
        raise _unusable("sub") from None
    return subject


def _unusable(claim: str) -> Unauthorized:
    return Unauthorized(f"This token's {claim} is missing or cannot be used", "claim")


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _caller(
    subject: str | None, session_ids: frozenset[str] | None, scope: Scope, claims: dict[str, Any]
) -> str:
    """The subject; without one, the other claims, so that a renewed token is the same caller."""
    if subject:
        return subject.replace("\0", "\0\0")  # no subject can then pass for a token without one
    audience = claims.get("aud")
    if isinstance(audience, list):
        audience = sorted(map(str, audience))
    sids = "*" if session_ids is None else sorted(session_ids)
    return "\0" + dumps([claims.get("iss"), audience, sids, scope.name]).decode()


def _token_of(headers: Mapping[str, str]) -> str | None:
    kind, _, token = headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    for each in headers.get("Sec-WebSocket-Protocol", "").split(","):
        if each.strip().startswith(_BEARER_SUBPROTOCOL):
            return each.strip().removeprefix(_BEARER_SUBPROTOCOL)
    return None
