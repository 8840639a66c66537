"""Tokens (JWT, RFC 7519): which are believed, and what they allow."""

import json
import re
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from tornado.httputil import HTTPHeaders

from lockstep.access import OPEN, Access, Scope
from lockstep.errors import Unauthorized
from lockstep.messages import UUID
from lockstep.state import dumps

LEEWAY_S = 5.0
MIN_SECRET_BYTES = 32
MAX_TOKEN_LENGTH = 8192
MAX_REMEMBERED = 10_000
SUBPROTOCOL = "lockstep.v1.json"
_BEARER_SUBPROTOCOL = "bearer."
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.S)


class Keys:
    """Whose signatures are believed. The kind of a key says the algorithm, never the token itself."""

    def __init__(self, keys: list[tuple[str | None, Any, str]]) -> None:
        """Each with its `kid`, where it has one, and its algorithm."""
        self._keys = keys

    @classmethod
    def read(cls, secret_file: str, public_key_file: str) -> "Keys | None":
        """None where no file is named. Raises ValueError, which names the file and what is wrong with it."""
        keys: list[tuple[str | None, Any, str]] = []
        if secret_file:
            secret = _content(secret_file).strip()
            if len(secret) < MIN_SECRET_BYTES:
                raise ValueError(f"{secret_file}: a secret needs {MIN_SECRET_BYTES} bytes or more")
            if b"-----BEGIN" in secret:
                raise ValueError(f"{secret_file}: this is a key, not a secret")
            keys.append((None, secret, "HS256"))
        if public_key_file:
            content = _content(public_key_file)
            try:
                found = _from_jwks(content) if content.lstrip().startswith(b"{") else _from_pem(content)
            except (ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
                raise ValueError(f"{public_key_file}: {error or 'not a key'}") from None
            if not found:
                raise ValueError(f"{public_key_file}: no public key in it")
            keys += found
        return cls(keys) if keys else None

    @staticmethod
    def private(path: str) -> tuple[Any, str]:
        """A key to sign with, and its algorithm. Raises ValueError."""
        try:
            key: Any = load_pem_private_key(_content(path), None)
            return key, _algorithm_of(key.public_key())
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from None

    def claims(self, token: str, audience: str) -> dict[str, Any]:
        """Raises jwt.PyJWTError."""
        header = jwt.get_unverified_header(token)
        kid, algorithm = header.get("kid"), header.get("alg")
        # A token that names its key is checked with that one; else those of its algorithm are tried in turn.
        named = [key for key in self._keys if key[0] is not None and key[0] == kid]
        refusal: jwt.PyJWTError = jwt.InvalidKeyError("no such key")
        for _, key, its_algorithm in named or self._keys:
            if its_algorithm != algorithm:
                continue
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key,
                    algorithms=[its_algorithm],
                    audience=audience or None,
                    leeway=LEEWAY_S,
                    options={"require": ["exp"], "verify_aud": bool(audience)},
                )
                return claims
            except jwt.InvalidSignatureError as error:
                refusal = error
        raise refusal


class Tokens:
    """Turns a request's token into what it allows. Verified ones are remembered: signatures are expensive."""

    def __init__(self, keys: Keys | None, audience: str) -> None:
        self._keys = keys
        self._audience = audience
        self._known: OrderedDict[str, Access] = OrderedDict()

    @property
    def are_needed(self) -> bool:
        return self._keys is not None

    def access(self, headers: HTTPHeaders, in_query: str | None) -> Access:
        """What the request's token allows; everything where none is needed. Raises Unauthorized."""
        if self._keys is None:
            return OPEN
        token = _token_of(headers) or in_query
        if not token:
            raise Unauthorized("A token is needed")
        known = self._known.get(token)
        if known is None:
            known = self._verified(token)
            if len(self._known) >= MAX_REMEMBERED:
                self._known.popitem(last=False)
            self._known[token] = known
        assert known.expires_at_s is not None
        if known.expires_at_s + LEEWAY_S <= time.time():
            raise Unauthorized("This token has expired")
        return known

    def _verified(self, token: str) -> Access:
        assert self._keys is not None
        if len(token) > MAX_TOKEN_LENGTH:
            raise Unauthorized("This token is not valid")
        try:
            return _access(self._keys.claims(token, self._audience))
        except jwt.ExpiredSignatureError:
            raise Unauthorized("This token has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            raise Unauthorized("This token is not valid") from None


def _access(claims: dict[str, Any]) -> Access:
    sid, subject = claims["sid"], claims.get("sub")  # PyJWT has seen to it that sub is a string
    scope = {"view": Scope.VIEW, "control": Scope.CONTROL, "admin": Scope.ADMIN}[claims["scope"]]
    session_ids = None
    if sid != "*":
        listed = [sid] if isinstance(sid, str) else sid
        session_ids = frozenset(each.lower() for each in listed)
        if not session_ids or not all(UUID.fullmatch(each) for each in session_ids):
            raise ValueError("sid")
    caller = _caller(subject, session_ids, scope, claims)
    return Access(scope, session_ids, subject, float(claims["exp"]), caller=caller)


def _caller(
    subject: str | None, session_ids: frozenset[str] | None, scope: Scope, claims: dict[str, Any]
) -> str:
    """The subject; without one, what a token says besides, so that a renewed token is the same caller."""
    if subject:
        return subject.replace("\0", "\0\0")  # so that no subject can pass for a token without one
    audience = claims.get("aud")
    if isinstance(audience, list):
        audience = sorted(map(str, audience))
    sids = "*" if session_ids is None else sorted(session_ids)
    return "\0" + dumps([claims.get("iss"), audience, sids, scope.name]).decode()


def _token_of(headers: HTTPHeaders) -> str | None:
    kind, _, token = headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    for each in headers.get("Sec-WebSocket-Protocol", "").split(","):
        if each.strip().startswith(_BEARER_SUBPROTOCOL):
            return each.strip().removeprefix(_BEARER_SUBPROTOCOL)
    return None


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None


def _from_pem(content: bytes) -> list[tuple[str | None, Any, str]]:
    keys = [load_pem_public_key(block) for block in _PEM.findall(content)]
    return [(None, key, _algorithm_of(key)) for key in keys]


def _from_jwks(content: bytes) -> list[tuple[str | None, Any, str]]:
    data = json.loads(content)
    found: list[tuple[str | None, Any, str]] = []
    for each in data.get("keys", [data]):
        if each.get("kty") == "oct":
            raise ValueError("a secret has no place among public keys")
        key = jwt.PyJWK(each).key
        found.append((each.get("kid"), key, _algorithm_of(key)))
    return found


def _algorithm_of(key: Any) -> str:
    if isinstance(key, RSAPublicKey):
        return "RS256"
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name == "secp256r1":
        return "ES256"
    if isinstance(key, Ed25519PublicKey):
        return "EdDSA"
    raise ValueError("keys are RSA, P-256 or Ed25519")
