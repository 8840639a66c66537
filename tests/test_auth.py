"""Who may do what: every door with every kind of key."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from tornado.httputil import HTTPHeaders

from handlers.token_keys import TokenKeys
from handlers.tokens import Tokens
from lockstep.access import Access
from lockstep.errors import Unauthorized
from tests.support import command_line
from tests.support.api import COMMANDS
from tests.support.followers import V2
from tests.support.processes import Answer, ServerProcess, lockstep, parse_answer, request
from tests.support.processes import running as running_server
from tests.support.redis_server import RedisServer
from tests.support.tokens import ANNA, AUDIENCE, BERT, ISSUER, SECRET, token
from tests.support.ws_client import Closed, WsClient


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path = tmp_path_factory.mktemp("keys") / "secret"
    path.write_text(SECRET)
    server = ServerProcess(
        f"--jwt-secret-file={path}",
        f"--jwt-audience={AUDIENCE}",
        f"--jwt-issuer={ISSUER}",
        "--rate-limit-general=0",
        "--rate-limit-switch=0",
        "--log-level=info",
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
    """A request, and what each kind of caller is answered. `needs` is the least scope that will do."""

    method: str
    path: str
    needs: str
    body: Any = None
    success: int = 200
    note: str = ""


SEATS = [{"participant_id": str(uuid4()), "total_time_ms": 60_000}]
NEW = {"sync_mode": "per_participant", "participants": SEATS}
DOORS = [
    Door("GET", "/v1/sessions/ID", "view"),
    Door("GET", "/v1/sessions/ID/events", "view"),
    Door("POST", "/v1/sessions/ID/switch", "play"),
    Door("POST", "/v1/sessions/ID/switch", "play", {"data": {"move": "e4"}}, note="with data"),
    Door("POST", "/v1/sessions/ID/switch", "control", {"next_participant_id": BERT}, note="to another"),
    Door("POST", "/v1/sessions/ID/switch", "control", {"next_participant_id": ANNA}, note="to itself"),
    Door("POST", "/v1/sessions/ID/pause", "control"),
    Door("POST", "/v1/sessions/ID/resume", "control", success=400),  # it runs: past the door
    Door("POST", "/v1/sessions/ID/adjust", "control", {"delta_ms": 1000, "target": ANNA}),
    Door("POST", "/v1/sessions/ID/complete", "control"),
    Door("POST", "/v1/sessions/ID/cancel", "control", success=400),
    Door("POST", "/v1/sessions/ID/start", "control", success=400),
    Door("POST", "/v1/sessions/ID/seat", "control", {"participants": [{"total_time_ms": 60_000}]}),
    Door("POST", "/v1/sessions/ID/unseat", "control", {"participant_id": BERT}),
    Door("POST", "/v1/sessions/ID/annotate", "control", {"metadata": {"round": 2}}),
    Door("POST", "/v1/sessions/ID/messages", "control", {"type": "NOTE"}, 202),
    Door("POST", "/v1/sessions/ID/disconnect", "admin", {"subject": "nobody"}, 202),
    Door("DELETE", "/v1/sessions/ID", "admin", success=204),
    Door("POST", "/v1/sessions", "admin", NEW | {"session_id": "ID"}, 409, "of its own"),
    Door("POST", "/v1/sessions", "admin", NEW, 201),
    Door("GET", "/v1/sessions", "admin"),
]
SCOPES = ["view", "play", "control", "admin"]


@dataclass(frozen=True)
class Caller:
    """A token made for a session: why it is not believed, or what it is for (it, another, all)."""

    make: Callable[[str], str | None]
    reason: str = ""
    scope: str = ""
    of: str = "it"
    is_active: bool = False


def in_a_minute() -> int:
    return int(time.time()) + 60


CALLERS = {
    "none": Caller(lambda sid: None, "missing"),
    "nonsense": Caller(lambda sid: "not.a.token", "malformed"),
    "unsigned": Caller(lambda sid: token(sid=sid, key=None, algorithm="none"), "signature"),
    "bad signature": Caller(lambda sid: token(sid=sid, key=SECRET + "!"), "signature"),
    "expired": Caller(lambda sid: token(sid=sid, ttl_s=-60), "expired"),
    "not yet valid": Caller(lambda sid: token(sid=sid, nbf=in_a_minute()), "not_yet"),
    "issued later": Caller(lambda sid: token(sid=sid, iat=in_a_minute()), "not_yet"),
    "for others": Caller(lambda sid: token(sid=sid, aud="there"), "audience"),
    "for nobody": Caller(lambda sid: token(sid=sid, aud=None), "audience"),
    "by others": Caller(lambda sid: token(sid=sid, iss="there"), "issuer"),
    "by nobody": Caller(lambda sid: token(sid=sid, iss=None), "issuer"),
    "without expiry": Caller(lambda sid: token(sid=sid, exp=None), "claim"),
    "unknown scope": Caller(lambda sid: token("root openid", sid), "claim"),
    "without sid": Caller(lambda sid: token(sid=None), "claim"),
    "view": Caller(lambda sid: token("view", sid, sub=ANNA), scope="view"),
    "active": Caller(
        lambda sid: token("openid play profile", [sid], sub=ANNA.upper()), scope="play", is_active=True
    ),
    "not active": Caller(lambda sid: token("play", sid, sub=BERT), scope="play"),
    "no participant": Caller(lambda sid: token("play", sid, sub="someone else"), scope="play"),
    "nobody": Caller(lambda sid: token("play", sid), scope="play"),
    "host": Caller(lambda sid: token("view control play", sid), scope="control"),
    "host who plays": Caller(lambda sid: token("control", sid, sub=BERT), scope="control"),
    "admin": Caller(lambda sid: token("admin", sid.upper()), scope="admin"),
    "view of another": Caller(lambda sid: token("view", str(uuid4())), scope="view", of="another"),
    "active in another": Caller(
        lambda sid: token("play", str(uuid4()), sub=ANNA), scope="play", of="another", is_active=True
    ),
    "host of another": Caller(lambda sid: token("control", str(uuid4())), scope="control", of="another"),
    "admin of another": Caller(lambda sid: token("admin", str(uuid4())), scope="admin", of="another"),
    "view of all": Caller(lambda sid: token("view"), scope="view", of="all"),
    "active in all": Caller(lambda sid: token("play", sub=ANNA), scope="play", of="all", is_active=True),
    "host of all": Caller(lambda sid: token("control"), scope="control", of="all"),
    "admin of all": Caller(lambda sid: token("admin view"), scope="admin", of="all"),
}


@pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)
@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door.method} {door.path} {door.note}")
async def test_exactly_who_may_gets_through(server: ServerProcess, door: Door, caller: Caller) -> None:
    session_id = await running(server)
    body = door.body and json.loads(json.dumps(door.body).replace('"ID"', f'"{session_id}"'))
    path = door.path.replace("ID", session_id)
    answer = await ask(server, door.method, path, caller.make(session_id), body)
    status, reason, scope = expected(caller, door)
    assert answer.status == status, answer.raw
    if status in (401, 403):
        error = answer.body["error"]
        assert error["code"] == {401: "UNAUTHORIZED", 403: "FORBIDDEN"}[status]
        assert error["details"] == {"reason": reason} | ({"scope": scope} if scope else {})
        assert scope in error["message"]
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"


def expected(caller: Caller, door: Door) -> tuple[int, str, str]:
    """The status, the reason and the least scope that a refusal names."""
    if caller.reason:
        return 401, caller.reason, ""
    has_scope = SCOPES.index(caller.scope) >= SCOPES.index(door.needs)
    if door.path == "/v1/sessions":
        is_covered = caller.of == "all" or (caller.of == "it" and "session_id" in (door.body or {}))
        if door.method == "POST" and not has_scope:
            return 403, "scope", "admin"  # for which session it would be, only the body says
    else:
        is_covered = caller.of != "another"
    if not is_covered:
        return 403, "session", ""
    if door.path.endswith("switch") and caller.scope == "view":
        return 403, "scope", "play"  # to whom the turn should go, only the body says
    if door.path.endswith("switch") and not has_scope and caller is CALLERS["nobody"]:
        return 403, "turn", ""
    if not has_scope:
        return 403, "scope", door.needs
    if door.needs == "play" and caller.scope == "play" and not caller.is_active:
        return 403, "turn", ""
    return door.success, "", ""


@pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)
async def test_exactly_who_may_view_may_connect(server: ServerProcess, caller: Caller) -> None:
    session_id = await running(server)
    made = caller.make(session_id)
    query = f"&token={made}" if made else ""
    async with await WsClient.connect(f"{server.ws_url}/ws?sessionId={session_id}{query}") as client:
        first = await client.recv()
        if caller.reason or caller.of == "another":
            assert isinstance(first, Closed)
            assert first.code == (4501 if caller.reason else 4503)
        else:
            assert first["type"] == "CONNECTED"
            await client.send({"type": "RECONNECT"})
            assert (await client.recv())["type"] == "STATE_SYNC"


@pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)
async def test_exactly_who_may_gives_a_command_over_a_socket(server: ServerProcess, caller: Caller) -> None:
    for door in DOORS:
        _, _, name = door.path.partition("/ID/")
        if name not in COMMANDS:
            continue
        session_id = await running(server)
        status, reason, scope = expected(caller, door)
        made = caller.make(session_id)
        query = f"?token={made}" if made else ""
        async with await WsClient.connect(f"{server.ws_url}/ws{query}", headers=V2) as client:
            first = await client.recv()
            if status == 401:
                assert isinstance(first, Closed)
                assert first.code == 4501
                continue
            assert first["type"] == "WELCOME"
            await client.send(
                {"type": "COMMAND", "id": name, "sessionId": session_id, "command": name, "body": door.body}
            )
            answer = await client.recv()
            assert answer["id"] == name
            if status == 403:
                assert (answer["type"], answer["code"]) == ("ERROR", "FORBIDDEN"), door
                assert answer["details"] == {"reason": reason} | ({"scope": scope} if scope else {})
            elif status == 400:
                assert (answer["type"], answer["code"]) == ("ERROR", "INVALID_STATE_TRANSITION"), door
            else:
                assert answer["type"] == "RESULT", (door, answer)
            await client.send({"type": "SUBSCRIBE", "id": 2, "sessionId": session_id})
            subscribed = await client.recv()
            if caller.of == "another":
                assert (subscribed["code"], subscribed["details"]) == ("FORBIDDEN", {"reason": "session"})
            else:
                assert subscribed["type"] == "SUBSCRIBED"


# --- before the body -----------------------------------------------------------------------------

WRONG_BODIES = {
    "no JSON": (b"{", {}),
    "wrong fields": ({"colour": "red", "delta_ms": "x", "type": 5}, {}),
    "another type": (b"<x/>", {"Content-Type": "text/xml"}),
    "long": (b"x" * 1_000_000, {}),
}
REFUSED = [
    (None, 401, "POST", "/v1/sessions"),
    ("view", 403, "POST", "/v1/sessions"),
    ("play", 403, "POST", "/v1/sessions/ID/adjust"),
    ("play", 403, "POST", "/v1/sessions/ID/seat"),
    ("play", 403, "POST", "/v1/sessions/ID/annotate"),
    ("view", 403, "POST", "/v1/sessions/ID/switch"),
    ("play", 403, "POST", "/v1/sessions/ID/messages"),
    ("control", 403, "POST", "/v1/sessions"),
    ("control", 403, "POST", "/v1/sessions/ID/disconnect"),
]


@pytest.mark.parametrize(("scope", "status", "method", "path"), REFUSED)
@pytest.mark.parametrize("wrong", WRONG_BODIES.values(), ids=WRONG_BODIES)
async def test_who_may_not_is_told_so_and_nothing_of_its_body(
    server: ServerProcess, wrong: Any, scope: str | None, status: int, method: str, path: str
) -> None:
    body, headers = wrong
    session_id = str(uuid4())
    if scope:
        headers = headers | {"Authorization": f"Bearer {token(scope, session_id, sub=ANNA)}"}
    answer = await request(server.url + path.replace("ID", session_id), method, body, headers)
    assert answer.status == status


@pytest.mark.parametrize("how", ["Content-Length: 99999999", "Transfer-Encoding: chunked"])
async def test_who_may_not_is_answered_before_a_long_body_has_come(server: ServerProcess, how: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        head = f"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{how}\r\n\r\n"
        writer.write(head.encode())
        if "chunked" in how:
            writer.write(b"110000\r\n" + b"x" * 0x110000 + b"\r\n")  # and more to come
        async with asyncio.timeout(5):  # nobody waits for the rest, which never comes
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            answered = parse_answer(answer + await reader.readexactly(length))
            with contextlib.suppress(ConnectionResetError):  # some of the body was not read
                assert await reader.read() == b""
        assert answered.status == 401
        assert answered.headers["connection"] == "close"
    finally:
        writer.transport.abort()


async def test_who_may_not_but_says_little_keeps_its_connection(server: ServerProcess) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        for _ in range(3):
            host = f"127.0.0.1:{server.port}"
            head = f"POST /v1/sessions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 60000\r\n\r\n"
            writer.write(head.encode() + b"x" * 60_000)
            async with asyncio.timeout(5):
                answer = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(answer.lower().partition("content-length: ")[2].split("\r\n")[0])
                await reader.readexactly(length)
            assert answer.startswith("HTTP/1.1 401 ")
    finally:
        writer.transport.abort()


# --- what is everybody's -------------------------------------------------------------------------


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
    anna, bert = token("play", session_id, sub=ANNA.upper()), token("play", session_id, sub=BERT)
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
    # Each is made just before it is used: a difference of more than 5 s is too much.
    for almost in (
        lambda: token(ttl_s=-1),
        lambda: token(nbf=int(time.time()) + 3),
        lambda: token(iat=int(time.time()) + 3),
    ):
        assert (await ask(server, "GET", path, almost())).status == 200


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
    keys = TokenKeys.read("", str(path))
    assert keys is not None
    assert keys.claims(token(key=PRIVATE[algorithm], algorithm=algorithm))["scope"] == "admin"
    for other in PRIVATE.keys() - {algorithm}:
        with pytest.raises(Unauthorized):
            keys.claims(token(key=PRIVATE[other], algorithm=other))
    # The public key, which everybody has, taken for a secret.
    header, claims = '{"alg":"HS256","typ":"JWT"}', json.dumps({"sid": "*", "scope": "admin", "exp": 2**31})
    signing = b".".join(jwt.utils.base64url_encode(part.encode()) for part in (header, claims))
    forged = hmac.new(path.read_bytes(), signing, hashlib.sha256).digest()
    with pytest.raises(Unauthorized):
        keys.claims((signing + b"." + jwt.utils.base64url_encode(forged)).decode())


def test_keys_are_rotated_by_their_names(tmp_path: Path) -> None:
    def jwks(**keys: Any) -> TokenKeys:
        named = [
            json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())) | {"kid": kid}
            for kid, key in keys.items()
        ]
        path = tmp_path / "keys.json"
        path.write_text(json.dumps({"keys": named}))
        found = TokenKeys.read("", str(path))
        assert found is not None
        return found

    old, new = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    by_old, by_new = (
        token(key=key, algorithm="ES256", headers={"kid": kid}) for kid, key in (("old", old), ("new", new))
    )
    both, later = jwks(old=old, new=new), jwks(new=new)
    for each in (by_old, by_new):
        assert both.claims(each)["sid"] == "*"
    assert later.claims(by_new)["sid"] == "*"
    with pytest.raises(Unauthorized):
        later.claims(by_old)
    # A name does not make a signature.
    with pytest.raises(Unauthorized):
        both.claims(token(key=new, algorithm="ES256", headers={"kid": "old"}))


def test_several_public_keys_in_one_file_are_tried_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "keys.pem"
    path.write_bytes(b"".join(pem(key) for key in PRIVATE.values()))
    keys = TokenKeys.read("", str(path))
    assert keys is not None
    for algorithm, key in PRIVATE.items():
        assert keys.claims(token(key=key, algorithm=algorithm))["sid"] == "*"


def keys_of(tmp_path: Path) -> TokenKeys:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    keys = TokenKeys.read(str(path), "")
    assert keys is not None
    return keys


def allowed(tokens: Tokens, made: str) -> Access:
    return tokens.access(HTTPHeaders({"Authorization": f"Bearer {made}"}), None)


@pytest.mark.parametrize(
    ("given", "is_good"), [("here", True), (["here", "there"], True), ("there", False), (None, False)]
)
def test_a_token_is_for_its_audience(tmp_path: Path, given: Any, is_good: bool) -> None:
    made, keys = token(aud=given), keys_of(tmp_path)
    if is_good:
        allowed(Tokens(keys, "here"), made)
    else:
        with pytest.raises(Unauthorized):
            allowed(Tokens(keys, "here"), made)
    allowed(Tokens(keys), made)


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
        (f"--jwt-secret-file={secret}", TokenKeys.read(str(secret), "")),
        (f"--jwt-private-key-file={private}", TokenKeys.read("", str(public))),
    ):
        made = command_line.lockstep(
            "token", f"--sid={ANNA},{BERT}", "--scope=control", "--ttl=60", f"--sub={ANNA}", signing
        )
        assert made.returncode == 0, made.stderr
        assert keys is not None
        claims = keys.claims(made.stdout.strip())
        assert (claims["sid"], claims["scope"], claims["sub"]) == ([ANNA, BERT], "control", ANNA)
        assert 0 < claims["exp"] - time.time() <= 60


@pytest.mark.parametrize(
    "args", [[], ["--sid=*"], ["--sid=*", "--scope=root"], ["--sid=*", "--scope=view"], ["--what=x"]]
)
def test_a_token_that_cannot_be_made_is_one_line(args: list[str]) -> None:
    done = command_line.lockstep("token", *args)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_check_config_shows_what_is_in_force_and_no_password() -> None:
    done = command_line.lockstep("check-config", "--broker=redis://user:geheim@host:1/0", "--drain-s=3")
    assert done.returncode == 0
    assert "drain_s = 3.0" in done.stdout
    assert "geheim" not in done.stdout
    assert "redis://user:***@host:1/0" in done.stdout
    bad = command_line.lockstep("check-config", "--drain-s=soon")
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


async def test_with_tokens_switches_are_limited_exactly_at_all_doors_of_two_processes_and_admins_are_not(
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
        alone = {"sync_mode": "count_up", "participants": [{"participant_id": ANNA}]}
        session_id = (await ask(servers[0], "POST", "/v1/sessions", token(), alone)).data["session_id"]
        await ask(servers[0], "POST", f"/v1/sessions/{session_id}/start", token())

        async def switch(number: int, with_token: str) -> int:
            path, server = f"/v1/sessions/{session_id}/switch", servers[number % 2]
            if number % 4 < 2:
                return (await ask(server, "POST", path, with_token)).status
            url = f"{server.ws_url}/ws?token={with_token}"
            async with await WsClient.connect(url, headers=V2) as client:
                command = {"type": "COMMAND", "id": 1, "sessionId": session_id, "command": "switch"}
                assert (await client.recv())["type"] == "WELCOME"
                await client.send(command)
                answer = await client.recv()
            if answer["type"] == "ERROR":
                assert (answer["code"], answer["retryAfterMs"] > 0) == ("RATE_LIMIT_EXCEEDED", True)
            return 200 if answer["type"] == "RESULT" else 429

        annas = token("play", session_id, sub=ANNA)
        statuses = await asyncio.gather(*(switch(number, annas) for number in range(40)))
        assert Counter(statuses) == {200: 10, 429: 30}
        assert [await switch(number, token()) for number in range(4)] == [200] * 4
        read = await ask(servers[1], "GET", f"/v1/sessions/{session_id}", annas)
        assert read.data["version"] == 2 + 10 + 4
    finally:
        for server in servers:
            server.stop()
        redis.close()


async def test_commands_over_sockets_and_requests_share_what_a_caller_may_do(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    settings = (f"--jwt-secret-file={tmp_path / 'secret'}", "--rate-limit-general=20/60")
    with running_server(ServerProcess(*settings)) as server:
        session_id = await running(server)
        path = f"/v1/sessions/{session_id}"
        annas = token("control", session_id, sub=ANNA)
        async with await WsClient.connect(f"{server.ws_url}/ws?token={annas}", headers=V2) as client:
            assert (await client.recv())["type"] == "WELCOME"

            async def command(name: str) -> str:
                said = {"type": "COMMAND", "id": 1, "sessionId": session_id, "command": name}
                await client.send(said)
                answer = await client.recv()
                return str(answer.get("code", answer["type"]))

            for _ in range(5):
                assert (await ask(server, "GET", path, annas)).status == 200
                # What is refused was a request, too.
                codes = [await command(name) for name in ("switch", "resume", "fly")]
                assert codes == ["RESULT", "INVALID_STATE_TRANSITION", "VALIDATION_ERROR"]
            assert (await ask(server, "GET", path, annas)).status == 429
            assert await command("switch") == "RATE_LIMIT_EXCEEDED"
            assert (await ask(server, "GET", path, token("view", session_id, sub=BERT))).status == 200


# --- whose a key of idempotency is ---------------------------------------------------------------


def caller_of(**claims: Any) -> str:
    tokens = Tokens(TokenKeys([(None, SECRET.encode(), "HS256")]), "")
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
