"""Tokens (JWT, RFC 7519): which are believed, and what they allow."""

import json
import logging
import math
import re
import time
from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from tornado.httputil import HTTPHeaders

from lockstep.access import ANONYMOUS, OPEN, Access, Scope
from lockstep.errors import Unauthorized
from lockstep.rules.state_json import dumps
from lockstep.wire.heads import UUID

log = logging.getLogger(__name__)

LEEWAY_S = 5.0
MIN_SECRET_BYTES = 32
MIN_RSA_BITS = 2048
MAX_TOKEN_LENGTH = 8192
MAX_REMEMBERED = 10_000
# The end of the year 9999: what lies beyond is as good as that, and no timer's trouble.
MAX_INSTANT_S = 253_402_300_800
# A longer subject names its limits' keys in the store by a hash.
MAX_CLIENT_LENGTH = 128
SUBPROTOCOL = "lockstep.v1.json"
_BEARER_SUBPROTOCOL = "bearer."
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.S)
_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)
_SCOPES = {scope.name.lower(): scope for scope in Scope}
# Which kinds of JWK (RFC 7518 6) sign here: who reads them, and what they say besides.
_KINDS: dict[tuple[Any, Any], tuple[Any, tuple[str, ...]]] = {
    ("RSA", None): (RSAAlgorithm, ("n", "e")),
    ("EC", "P-256"): (ECAlgorithm, ("x", "y")),
    ("OKP", "Ed25519"): (OKPAlgorithm, ("x",)),
}

# Its `kid`, where it has one, the key, and its algorithm.
Key = tuple[str | None, Any, str]


class Keys:
    """Whose signatures are believed. The kind of a key says the algorithm, never the token itself."""

    def __init__(self, keys: list[Key]) -> None:
        self._keys = keys

    @classmethod
    def read(cls, secret_file: str, public_key_file: str) -> "Keys | None":
        """None where no file is named. Raises ValueError, which names the file and what is wrong with it."""
        keys: list[Key] = []
        if secret_file:
            secret = _content(secret_file).strip()
            if len(secret) < MIN_SECRET_BYTES:
                raise ValueError(f"{secret_file}: a secret needs {MIN_SECRET_BYTES} bytes or more")
            if b"-----BEGIN" in secret:
                raise ValueError(f"{secret_file}: this is a key, not a secret")
            keys.append((None, secret, "HS256"))
        if public_key_file:
            content = _content(public_key_file)
            is_set = content.lstrip().startswith(b"{")
            try:
                keys += _from_jwks(content, public_key_file) if is_set else _from_pem(content)
            except (ValueError, TypeError, UnsupportedAlgorithm) as error:
                raise ValueError(f"{public_key_file}: {error or 'not a key'}") from None
        return cls(keys) if keys else None

    @staticmethod
    def private(path: str) -> tuple[Any, str]:
        """A key to sign with, and its algorithm. Raises ValueError."""
        try:
            key: Any = load_pem_private_key(_content(path), None)
            return key, _algorithm_of(key.public_key())
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(f"{path}: {error}") from None

    def claims(self, token: str) -> dict[str, Any]:
        """What a token says that is signed with one of the keys. Raises Unauthorized."""
        malformed = Unauthorized("This token cannot be read", "malformed")
        if len(token) > MAX_TOKEN_LENGTH or not _TOKEN.fullmatch(token):
            raise malformed
        try:
            header = jwt.get_unverified_header(token)
            payload = self._payload(token, header)
            claims = json.loads(payload)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, RecursionError):
            raise malformed from None
        if not isinstance(claims, dict):
            raise malformed
        return claims

    def _payload(self, token: str, header: dict[str, Any]) -> bytes:
        if "crit" in header:
            raise ValueError("extensions that must be understood (RFC 7515 4.1.11), and are not")
        kid, algorithm = header.get("kid"), header.get("alg")
        # A token that names its key is checked with that one; else those of its algorithm are tried in turn.
        named = [key for key in self._keys if key[0] is not None and key[0] == kid]
        for _, key, its_algorithm in named or self._keys:
            if its_algorithm != algorithm:
                continue
            try:
                payload: bytes = jwt.PyJWS().decode(token, key, algorithms=[its_algorithm])
                return payload
            except jwt.InvalidSignatureError:
                continue
        raise Unauthorized("This token is not signed by any key that is known here", "signature")


class Tokens:
    """Turns a request's token into what it allows. Verified ones are remembered: signatures are expensive."""

    def __init__(
        self, keys: Keys | None, audience: str = "", issuer: str = "", anonymous: str = "none"
    ) -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer
        self._lets_anybody_view = anonymous == "view"
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
        """What is signed may be odd all the same. Raises Unauthorized."""
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
        # Whoever spells its signature otherwise is still the same.
        signed = token.rpartition(".")[0]
        is_short = subject is not None and len(subject) <= MAX_CLIENT_LENGTH
        client = subject if subject and is_short else _hash(subject or signed)
        return Access(scope, session_ids, subject, expires_at_s, caller=caller, client=client)


def _instant(claims: dict[str, Any], name: str) -> float | None:
    """Epoch seconds; None where the claim is absent."""
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


def _from_pem(content: bytes) -> list[Key]:
    keys = [load_pem_public_key(block) for block in _PEM.findall(content)]
    if not keys:
        raise ValueError("no public key in it")
    return [(None, key, _algorithm_of(key)) for key in keys]


def _from_jwks(content: bytes, path: str) -> list[Key]:
    """Those of a set (RFC 7517) that can be used here; each of the others is a line in the log."""
    data = json.loads(content)
    listed = data.get("keys", [data])
    if not isinstance(listed, list):
        raise ValueError("its keys are not a list")
    found: list[Key] = []
    left_out: list[tuple[object, str]] = []
    for place, each in enumerate(listed):
        try:
            found.append(_from_jwk(each))
        except (jwt.PyJWTError, ValueError, UnsupportedAlgorithm) as error:
            name = each.get("kid") if isinstance(each, dict) else None
            left_out.append((name or place, str(error) or "it cannot be read"))
    if not found:
        raise ValueError(f"no key in it can be used: {left_out[0][1] if left_out else 'it is empty'}")
    for name, complaint in left_out:
        log.warning("%s: key %s is not used: %s", path, name, complaint)
    return found


def _from_jwk(jwk: Any) -> Key:
    """Raises ValueError, or what the libraries do, with the reason why it cannot be used."""
    if not isinstance(jwk, dict):
        raise ValueError("it is not an object")
    kty, crv, kid, operations = (jwk.get(name) for name in ("kty", "crv", "kid", "key_ops"))
    if kty == "oct":
        raise ValueError("a secret has no place among public keys")
    if "d" in jwk:
        raise ValueError("it is a private key")
    if jwk.get("use", "sig") != "sig":
        raise ValueError(f"its use is {jwk['use']!r}, not 'sig'")
    if "key_ops" in jwk and not (isinstance(operations, list) and "verify" in operations):
        raise ValueError("its key_ops do not include 'verify'")
    if kid is not None and not isinstance(kid, str):
        raise ValueError("its kid is not a string")
    is_named = isinstance(kty, str) and isinstance(crv, str | None)
    kind = _KINDS.get((kty, None if kty == "RSA" else crv)) if is_named else None
    if kind is None:
        raise ValueError(f"its kind is {kty!r} {crv or ''}, not RSA, EC P-256 or OKP Ed25519")
    reader, members = kind
    if not all(isinstance(jwk.get(name), str) for name in members):
        raise ValueError(f"it lacks {' or '.join(members)}")
    key = reader.from_jwk({name: jwk[name] for name in ("kty", "crv", *members) if name in jwk})
    algorithm = _algorithm_of(key)
    if jwk.get("alg", algorithm) != algorithm:
        raise ValueError(f"its alg is {jwk['alg']!r}, not {algorithm!r}")
    return kid, key, algorithm


def _algorithm_of(key: Any) -> str:
    if isinstance(key, RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise ValueError(f"an RSA key needs {MIN_RSA_BITS} bits or more, this has {key.key_size}")
        return "RS256"
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name == "secp256r1":
        return "ES256"
    if isinstance(key, Ed25519PublicKey):
        return "EdDSA"
    raise ValueError("keys are RSA, P-256 or Ed25519")
