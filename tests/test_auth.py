"""Who may do what: every door with every kind of key."""

import asyncio
import hashlib
import hmac
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from tornado.httputil import HTTPHeaders

from handlers.tokens import Keys, Tokens
from tests.processes import ROOT, Answer, ServerProcess, request
from tests.redis_server import RedisServer
from tests.ws_client import Closed, WsClient

SECRET = "a secret of more than thirty-two bytes, for tests only"
ANNA, BERT = str(uuid4()), str(uuid4())


def token(scope: str = "admin", sid: Any = "*", ttl_s: float = 600, key: Any = SECRET, **claims: Any) -> str:
    algorithm = claims.pop("algorithm", "HS256")
    headers = claims.pop("headers", None)
    body = {"scope": scope, "sid": sid, "exp": int(time.time() + ttl_s)} | claims
    return jwt.encode(
        {k: v for k, v in body.items() if v is not None}, key, algorithm=algorithm, headers=headers
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path = tmp_path_factory.mktemp("keys") / "secret"
    path.write_text(SECRET)
    server = ServerProcess(
        f"--jwt-secret-file={path}", "--rate-limit-general=0", "--rate-limit-switch=0", "--log-level=info"
    )
    yield server
    server.stop()


async def ask(
    server: ServerProcess, method: str, path: str, with_token: str | None, body: Any = None
) -> Answer:
    headers = {"Authorization": f"Bearer {with_token}"} if with_token else {}
    return await request(server.url + path, method, body, headers)


async def running(server: ServerProcess) -> str:
    """Anna's turn."""
    seats = [{"participant_id": each, "total_time_ms": 60_000} for each in (ANNA, BERT)]
    body = {"sync_mode": "per_participant", "participants": seats}
    created = await ask(server, "POST", "/v1/sessions", token(), body)
    session_id: str = created.data["session_id"]
    assert (await ask(server, "POST", f"/v1/sessions/{session_id}/start", token())).status == 200
    return session_id


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Door:
    """A request, and what each kind of caller is answered. `needs` is view, own, admin or all."""

    method: str
    path: str
    needs: str
    body: Any = None
    success: int = 200


SEATS = [{"participant_id": str(uuid4()), "total_time_ms": 60_000}]
DOORS = [
    Door("GET", "/v1/sessions/ID", "view"),
    Door("GET", "/v1/sessions/ID/events", "view"),
    Door("POST", "/v1/sessions/ID/switch", "own"),
    Door("POST", "/v1/sessions/ID/pause", "own"),
    Door("POST", "/v1/sessions/ID/resume", "own"),
    Door("POST", "/v1/sessions/ID/adjust", "admin", {"delta_ms": 1000, "target": ANNA}),
    Door("POST", "/v1/sessions/ID/complete", "admin"),
    Door("POST", "/v1/sessions/ID/cancel", "admin", success=400),
    Door("POST", "/v1/sessions/ID/start", "admin", success=400),  # it runs: past the door
    Door("POST", "/v1/sessions/ID/messages", "admin", {"type": "NOTE"}, 202),
    Door("DELETE", "/v1/sessions/ID", "admin", success=204),
    Door("GET", "/v1/sessions", "all"),
    Door("POST", "/v1/sessions", "all", {"sync_mode": "per_participant", "participants": SEATS}, 201),
]
CALLERS = {
    "none": (None, 401),
    "bad signature": (lambda sid: token(sid=sid, key=SECRET + "!"), 401),
    "expired": (lambda sid: token(sid=sid, ttl_s=-60), 401),
    "without expiry": (lambda sid: token(sid=sid, exp=None), 401),
    "not yet valid": (lambda sid: token(sid=sid, nbf=int(time.time()) + 60), 401),
    "unsigned": (lambda sid: token(sid=sid, key=None, algorithm="none"), 401),
    "nonsense": (lambda sid: "not.a.token", 401),
    "unknown scope": (lambda sid: token("root", sid), 401),
    "without sid": (lambda sid: token(sid=None), 401),
    "wrong session": (lambda sid: token(sid=str(uuid4())), 403),
    "view": (lambda sid: token("view", sid), "view"),
    "active": (lambda sid: token("control", [sid], sub=ANNA), "own"),
    "not active": (lambda sid: token("control", sid, sub=BERT), "view"),
    "nobody": (lambda sid: token("control", sid), "view"),
    "admin of it": (lambda sid: token("admin", sid.upper()), "admin"),
    "admin of all": (lambda sid: token("admin"), "all"),
}
MAY = {
    "view": {"view"},
    "own": {"view", "own"},
    "admin": {"view", "own", "admin"},
    "all": {"view", "own", "admin", "all"},
}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door.method} {door.path}")
async def test_exactly_who_may_gets_through(server: ServerProcess, door: Door, caller: str) -> None:
    session_id = await running(server)
    if door.path.endswith("/resume"):
        await ask(server, "POST", f"/v1/sessions/{session_id}/pause", token())
    make, allowed = CALLERS[caller]
    answer = await ask(
        server, door.method, door.path.replace("ID", session_id), make and make(session_id), door.body
    )
    if isinstance(allowed, int):
        expected = allowed
    else:
        expected = door.success if door.needs in MAY[allowed] else 403
    assert answer.status == expected, answer.raw
    if expected == 401:
        assert answer.body["error"]["code"] == "UNAUTHORIZED"
        assert answer.headers["www-authenticate"] == "Bearer"
    elif expected == 403:
        assert answer.body["error"]["code"] == "FORBIDDEN"


@pytest.mark.parametrize("caller", CALLERS)
async def test_exactly_who_may_view_may_connect(server: ServerProcess, caller: str) -> None:
    session_id = await running(server)
    make, allowed = CALLERS[caller]
    query = f"&token={make(session_id)}" if make else ""
    async with await WsClient.connect(f"{server.ws_url}/ws?sessionId={session_id}{query}") as client:
        first = await client.recv()
        if isinstance(allowed, int):
            assert isinstance(first, Closed)
            assert first.code == {401: 4501, 403: 4503}[allowed]
        else:
            assert first["type"] == "CONNECTED"
            await client.send({"type": "RECONNECT"})
            assert (await client.recv())["type"] == "STATE_SYNC"


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/time", "/"])
async def test_what_is_everybodys_needs_no_token(server: ServerProcess, path: str) -> None:
    assert (await ask(server, "GET", path, None)).status == 200


# --- tokens --------------------------------------------------------------------------------------


async def test_a_token_in_the_query_or_the_subprotocol_is_as_good(server: ServerProcess) -> None:
    session_id = await running(server)
    view = token("view", session_id)
    assert (await request(f"{server.url}/v1/sessions/{session_id}?token={view}", "GET")).status == 200
    url = f"{server.ws_url}/ws?sessionId={session_id}"
    offered = {"Sec-WebSocket-Protocol": f"lockstep.v1.json, bearer.{view}"}
    async with await WsClient.connect(url, headers=offered) as client:
        assert (await client.recv())["type"] == "CONNECTED"
        assert "sec-websocket-protocol: lockstep.v1.json\r\n" in client.response.lower()


async def test_the_turn_decides_who_may_switch(server: ServerProcess) -> None:
    session_id = await running(server)
    path = f"/v1/sessions/{session_id}/switch"
    anna, bert = token("control", session_id, sub=ANNA.upper()), token("control", session_id, sub=BERT)
    assert [(await ask(server, "POST", path, each)).status for each in (bert, anna, anna, bert)] == [
        403,
        200,
        403,
        200,
    ]
    events = (await ask(server, "GET", f"/v1/sessions/{session_id}/events", anna)).data["events"]
    assert [event.get("actor") for event in events[-2:]] == [ANNA.upper(), BERT]


async def test_a_connection_ends_with_its_token(server: ServerProcess) -> None:
    session_id = await running(server)
    short = token("view", session_id, ttl_s=1.5)
    async with await WsClient.connect(f"{server.ws_url}/ws?sessionId={session_id}&token={short}") as client:
        assert (await client.recv())["type"] == "CONNECTED"
        assert await client.recv() == Closed(4501, "This token has expired")


async def test_clocks_may_differ_a_little(server: ServerProcess) -> None:
    session_id = await running(server)
    path = f"/v1/sessions/{session_id}"
    for almost in (token(ttl_s=-2), token(nbf=int(time.time()) + 3), token(iat=int(time.time()) + 3)):
        assert (await ask(server, "GET", path, almost)).status == 200


async def test_no_token_is_in_the_log_or_in_an_answer(server: ServerProcess) -> None:
    session_id = await running(server)
    for given in (token("view", session_id), token("view", session_id, key="x" * 40)):
        answer = await request(f"{server.url}/v1/sessions/{session_id}?token={given}", "GET")
        assert given.encode() not in answer.raw
        async with await WsClient.connect(
            f"{server.ws_url}/ws?sessionId={session_id}&token={given}"
        ) as client:
            await client.recv()
        assert given not in "".join(server.log_lines)
        assert given.rpartition(".")[2] not in "".join(server.log_lines)


# --- keys ----------------------------------------------------------------------------------------

PRIVATE = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def pem(key: Any) -> bytes:
    public: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_a_public_key_verifies_its_algorithm_and_no_other(tmp_path: Path, algorithm: str) -> None:
    path = tmp_path / "keys.pem"
    path.write_bytes(pem(PRIVATE[algorithm]))
    keys = Keys.read("", str(path))
    assert keys is not None
    assert keys.claims(token(key=PRIVATE[algorithm], algorithm=algorithm), "")["scope"] == "admin"
    for other in PRIVATE.keys() - {algorithm}:
        with pytest.raises(jwt.PyJWTError):
            keys.claims(token(key=PRIVATE[other], algorithm=other), "")
    # The public key, which everybody has, taken for a secret.
    header, claims = '{"alg":"HS256","typ":"JWT"}', json.dumps({"sid": "*", "scope": "admin", "exp": 2**31})
    signing = b".".join(jwt.utils.base64url_encode(part.encode()) for part in (header, claims))
    forged = hmac.new(path.read_bytes(), signing, hashlib.sha256).digest()
    with pytest.raises(jwt.PyJWTError):
        keys.claims((signing + b"." + jwt.utils.base64url_encode(forged)).decode(), "")


def test_keys_are_rotated_by_their_names(tmp_path: Path) -> None:
    def jwks(**keys: Any) -> Keys:
        named = [
            json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())) | {"kid": kid}
            for kid, key in keys.items()
        ]
        path = tmp_path / "keys.json"
        path.write_text(json.dumps({"keys": named}))
        found = Keys.read("", str(path))
        assert found is not None
        return found

    old, new = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    by_old, by_new = (
        token(key=key, algorithm="ES256", headers={"kid": kid}) for kid, key in (("old", old), ("new", new))
    )
    both, later = jwks(old=old, new=new), jwks(new=new)
    for each in (by_old, by_new):
        assert both.claims(each, "")["sid"] == "*"
    assert later.claims(by_new, "")["sid"] == "*"
    with pytest.raises(jwt.PyJWTError):
        later.claims(by_old, "")
    # A name does not make a signature.
    with pytest.raises(jwt.PyJWTError):
        both.claims(token(key=new, algorithm="ES256", headers={"kid": "old"}), "")


def test_several_public_keys_in_one_file_are_tried_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "keys.pem"
    path.write_bytes(b"".join(pem(key) for key in PRIVATE.values()))
    keys = Keys.read("", str(path))
    assert keys is not None
    for algorithm, key in PRIVATE.items():
        assert keys.claims(token(key=key, algorithm=algorithm), "")["sid"] == "*"


@pytest.mark.parametrize(
    ("given", "is_good"), [("here", True), (["here", "there"], True), ("there", False), (None, False)]
)
def test_a_token_is_for_its_audience(tmp_path: Path, given: Any, is_good: bool) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    keys = Keys.read(str(path), "")
    assert keys is not None
    made = token(aud=given)
    if is_good:
        keys.claims(made, "here")
    else:
        with pytest.raises(jwt.PyJWTError):
            keys.claims(made, "here")
    keys.claims(made, "")


@pytest.mark.parametrize(
    ("setting", "content", "complaint"),
    [
        ("jwt-secret-file", None, "No such file"),
        ("jwt-secret-file", b"short", "32 bytes"),
        ("jwt-secret-file", pem(PRIVATE["ES256"]), "a key, not a secret"),
        ("jwt-public-key-file", None, "No such file"),
        ("jwt-public-key-file", b"", "no public key"),
        ("jwt-public-key-file", b"{}", ""),
        ("jwt-public-key-file", b'{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}', "no place"),
    ],
)
def test_a_bad_key_file_ends_the_start_with_one_line(
    tmp_path: Path, setting: str, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    done = lockstep(f"--{setting}={path}", "--port=0")
    assert done.returncode == 1
    assert str(path) in done.stderr
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def lockstep(*args: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "server.py", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def test_without_keys_nobody_else_can_be_let_in_by_mistake() -> None:
    done = lockstep("--address=0.0.0.0", "--port=0")
    assert done.returncode == 1
    assert "--jwt-secret-file" in done.stderr
    assert done.stderr.count("\n") == 1


# --- commands ------------------------------------------------------------------------------------


def test_a_token_made_by_the_command_is_believed(tmp_path: Path) -> None:
    secret, private, public = tmp_path / "secret", tmp_path / "private.pem", tmp_path / "public.pem"
    secret.write_text(SECRET + "\n")
    key = PRIVATE["EdDSA"]
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(pem(key))
    for signing, keys in (
        (f"--jwt-secret-file={secret}", Keys.read(str(secret), "")),
        (f"--jwt-private-key-file={private}", Keys.read("", str(public))),
    ):
        made = lockstep(
            "token", f"--sid={ANNA},{BERT}", "--scope=control", "--ttl=60", f"--sub={ANNA}", signing
        )
        assert made.returncode == 0, made.stderr
        assert keys is not None
        claims = keys.claims(made.stdout.strip(), "")
        assert (claims["sid"], claims["scope"], claims["sub"]) == ([ANNA, BERT], "control", ANNA)
        assert 0 < claims["exp"] - time.time() <= 60


@pytest.mark.parametrize(
    "args", [[], ["--sid=*"], ["--sid=*", "--scope=root"], ["--sid=*", "--scope=view"], ["--what=x"]]
)
def test_a_token_that_cannot_be_made_is_one_line(args: list[str]) -> None:
    done = lockstep("token", *args)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_check_config_shows_what_is_in_force_and_no_password() -> None:
    done = lockstep("check-config", "--broker=redis://user:geheim@host:1/0", "--drain-s=3")
    assert done.returncode == 0
    assert "drain_s = 3.0" in done.stdout
    assert "geheim" not in done.stdout
    assert "redis://user:***@host:1/0" in done.stdout
    bad = lockstep("check-config", "--drain-s=soon")
    assert (bad.returncode, bad.stderr.count("\n")) == (1, 1)


async def test_the_doctor_says_what_is_well_and_what_is_not() -> None:
    redis = RedisServer()
    try:
        with redis.client as client:
            client.config_set("appendonly", "yes")
        well = await asyncio.to_thread(lockstep, "doctor", f"--broker={redis.url}", "--max-connections=10")
        assert well.returncode == 0, well.stdout
        assert {line[:2] for line in well.stdout.splitlines()} == {"ok"}
        with redis.client as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        ill = await asyncio.to_thread(lockstep, "doctor", f"--broker={redis.url}", "--max-connections=10")
        assert ill.returncode == 1
        assert [line for line in ill.stdout.splitlines() if line.startswith("MEND")] == [
            "MEND  eviction: allkeys-lru; sessions could vanish: CONFIG SET maxmemory-policy noeviction"
        ]
    finally:
        redis.close()
    gone = await asyncio.to_thread(lockstep, "doctor", f"--broker={redis.url}")
    assert gone.returncode == 1
    assert "MEND  Redis" in gone.stdout


async def test_with_tokens_switches_are_limited_exactly_over_two_processes_and_admins_are_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "secret").write_text(SECRET)
    redis = RedisServer()
    settings = (
        f"--broker={redis.url}",
        f"--jwt-secret-file={tmp_path / 'secret'}",
        "--rate-limit-switch=10/60",
    )
    servers = [ServerProcess(*settings) for _ in range(2)]
    try:
        alone = {
            "sync_mode": "per_participant",
            "participants": [{"participant_id": ANNA, "total_time_ms": 60_000}],
        }
        session_id = (await ask(servers[0], "POST", "/v1/sessions", token(), alone)).data["session_id"]
        await ask(servers[0], "POST", f"/v1/sessions/{session_id}/start", token())

        async def switch(number: int, with_token: str) -> int:
            path = f"/v1/sessions/{session_id}/switch"
            return (await ask(servers[number % 2], "POST", path, with_token)).status

        annas = token("control", session_id, sub=ANNA)
        statuses = await asyncio.gather(*(switch(number, annas) for number in range(40)))
        assert Counter(statuses) == {200: 10, 429: 30}
        assert [await switch(number, token()) for number in range(4)] == [200] * 4
        read = await ask(servers[1], "GET", f"/v1/sessions/{session_id}", annas)
        assert read.data["version"] == 2 + 10 + 4
    finally:
        for server in servers:
            server.stop()
        redis.close()


# --- whose a key of idempotency is ---------------------------------------------------------------


def caller_of(**claims: Any) -> str:
    tokens = Tokens(Keys([(None, SECRET.encode(), "HS256")]), "")
    headers = HTTPHeaders({"Authorization": f"Bearer {token(**claims)}"})
    return tokens.access(headers, None).caller


def test_a_renewed_token_is_the_same_caller() -> None:
    sids = [str(uuid4()), str(uuid4())]
    for claims in (
        {"sub": ANNA},
        {"iss": "school", "aud": ["b", "a"], "sid": sids},
        {"scope": "admin"},
    ):
        other = {"aud": ["a", "b"], "sid": [each.upper() for each in reversed(sids)]}
        respelled = claims | {name: other[name] for name in other.keys() & claims.keys()}
        assert caller_of(ttl_s=60, **claims) == caller_of(ttl_s=600, jti="other", **respelled)


def test_who_is_another_has_keys_of_its_own() -> None:
    one, other = str(uuid4()), str(uuid4())
    without_subject = {"iss": "school", "aud": "clocks", "sid": one}
    callers = [
        caller_of(sub=ANNA),
        caller_of(sub=BERT),
        caller_of(**without_subject),
        *(caller_of(**without_subject | {name: other}) for name in ("iss", "aud", "sid")),
        caller_of(scope="view", **without_subject),
        caller_of(sub=caller_of(**without_subject)),
        caller_of(sub="\0" + caller_of(**without_subject)),
    ]
    assert "" not in callers
    assert len(set(callers)) == len(callers)
