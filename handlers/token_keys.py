"""The keys that tokens are signed with (JWT, RFC 7519): secrets, PEM files and sets of JWK (RFC 7517)."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from lockstep.errors import Unauthorized

log = logging.getLogger(__name__)

MIN_SECRET_BYTES = 32
MIN_RSA_BITS = 2048
MAX_TOKEN_LENGTH = 8192
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.S)
_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)
# The kinds of JWK (RFC 7518 6) that can be used: what reads each, and its members besides kty and crv.
_KINDS: dict[tuple[Any, Any], tuple[Any, tuple[str, ...]]] = {
    ("RSA", None): (RSAAlgorithm, ("n", "e")),
    ("EC", "P-256"): (ECAlgorithm, ("x", "y")),
    ("OKP", "Ed25519"): (OKPAlgorithm, ("x",)),
}

Key = tuple[str | None, Any, str]
"""Its `kid` if it has one, the key, and its algorithm."""


class TokenKeys:
    """Whose signatures are accepted. The kind of a key determines the algorithm, never the token itself."""

    def __init__(self, keys: list[Key]) -> None:
        self._keys = keys

    @classmethod
    def read(cls, secret_file: str, public_key_file: str) -> "TokenKeys | None":
        """None if no file is named. Raises ValueError, which names the file and what is wrong with it."""
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
        """The claims of a token that is signed with one of the keys. Raises Unauthorized."""
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
    """The keys of a set (RFC 7517) that can be used here; each of the others is a line in the log."""
    data = json.loads(content)
    listed = data.get("keys", [data])
    if not isinstance(listed, list):
        raise ValueError("its keys are not a list")
    found: list[Key] = []
    left_out: list[tuple[object, str]] = []
    for index, each in enumerate(listed):
        try:
            found.append(_from_jwk(each))
        except (jwt.PyJWTError, ValueError, UnsupportedAlgorithm) as error:
            name = each.get("kid") if isinstance(each, dict) else None
            left_out.append((name or index, str(error) or "it cannot be read"))
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
