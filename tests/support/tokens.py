"""Tokens for the tests, and the secret that signs them."""

import time
from typing import Any
from uuid import uuid4

import jwt

SECRET = "a secret of more than thirty-two bytes, for tests only"
AUDIENCE, ISSUER = "clocks", "https://login.example"
ANNA, BERT = str(uuid4()), str(uuid4())


def token(scope: str = "admin", sid: Any = "*", ttl_s: float = 3600, key: Any = SECRET, **claims: Any) -> str:
    algorithm = claims.pop("algorithm", "HS256")
    headers = claims.pop("headers", None)
    ours = {"iss": ISSUER, "aud": AUDIENCE}
    body = {"scope": scope, "sid": sid, "exp": int(time.time() + ttl_s)} | ours | claims
    return jwt.encode(
        {k: v for k, v in body.items() if v is not None}, key, algorithm=algorithm, headers=headers
    )
