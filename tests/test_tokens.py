"""Keys and claims: which keys are used for what, and what becomes of claims that are signed but odd."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from tornado.httputil import HTTPHeaders

from handlers.token_keys import TokenKeys
from handlers.tokens import Tokens
from lockstep.access import Access, Scope
from lockstep.errors import Unauthorized
from tests.support.fuzzing import examples
from tests.support.processes import ServerProcess, lockstep, request
from tests.support.ws_client import Closed, WsClient

SECRET = "a secret of more than thirty-two bytes, for tests only"
SESSION_ID = "5f0c954a-77ff-4e9a-8b7e-1a0d5f8f2f11"
REASONS = {"missing", "malformed", "signature", "expired", "not_yet", "audience", "issuer", "claim"}
MALFORMED, CLAIM = "malformed", "claim"


def signed(claims: object, key: Any = SECRET, algorithm: str = "HS256", **headers: Any) -> str:
    """A token whose signature is good, whatever it says: JSON text is taken as it is."""
    payload = claims if isinstance(claims, str) else json.dumps(claims)
    return jwt.PyJWS().encode(payload.encode("utf-8", "surrogatepass"), key, algorithm, headers=headers)


def claims(**changes: Any) -> dict[str, Any]:
    return {"sid": SESSION_ID, "scope": "view", "sub": "anna", "exp": int(time.time()) + 600} | changes


def access(token: str, tokens: Tokens | None = None) -> Access:
    tokens = tokens or Tokens(TokenKeys([(None, SECRET.encode(), "HS256")]))
    return tokens.access(HTTPHeaders({"Authorization": f"Bearer {token}"}), None)


def reason_of(token: str, tokens: Tokens | None = None) -> str:
    """Why it is not believed; empty if it is."""
    try:
        access(token, tokens)
    except Unauthorized as error:
        reason: str = error.details["reason"]
        return reason
    return ""


# --- claims --------------------------------------------------------------------------------------

BEYOND = '"exp":1e400'


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": 10**30}, ""),
        ({"exp": 10**400}, ""),
        ({"exp": 1e300}, ""),
        ({"exp": 9_999_999_999.5}, ""),
        ({"exp": -(10**400)}, "expired"),
        ({"exp": float("inf")}, CLAIM),
        ({"exp": float("nan")}, CLAIM),
        ({"exp": "9999999999"}, CLAIM),
        *(({"exp": odd}, CLAIM) for odd in (True, None, [], {}, [10**10])),
        *(({name: odd}, CLAIM) for name in ("nbf", "iat") for odd in ("1", True, None, [1], float("nan"))),
        *(({name: 10**400}, "not_yet") for name in ("nbf", "iat")),
        *(({name: -(10**400)}, "") for name in ("nbf", "iat")),
        *(({"sub": odd}, CLAIM) for odd in (1, "", None, True, ["anna"], {}, "\ud800")),
        ({"sub": "Zoë \x00 " + "x" * 2000}, ""),
        *(({"sid": odd}, CLAIM) for odd in (1, [1], [[SESSION_ID]], [], None, True, {}, "", "x", ["*"])),
        *(
            ({"sid": odd}, CLAIM)
            for odd in ([SESSION_ID, 2], [SESSION_ID, "x"], f"{SESSION_ID},{SESSION_ID}")
        ),
        ({"sid": [SESSION_ID.upper(), SESSION_ID]}, ""),
        *(({"scope": odd}, CLAIM) for odd in ("", "openid", "VIEW", "views", None, 1, True, ["view"], {})),
        ({"scope": "openid play profile"}, ""),
        *(({"aud": odd}, "") for odd in (1, [1, "x"], {}, None)),  # nobody asks
        ({"iss": "\ud800"}, ""),
    ],
    ids=lambda each: str(each)[:40],
)
def test_odd_claims_are_understood_or_named(changes: dict[str, Any], reason: str) -> None:
    assert reason_of(signed(claims(**changes))) == reason


def test_a_number_beyond_json_is_no_instant() -> None:
    assert reason_of(signed(f'{{"sid":"*","scope":"view",{BEYOND}}}')) == CLAIM


@pytest.mark.parametrize(
    "payload",
    ["", "null", "[]", '"x"', "1", "{", "[" * 5000, '{"exp":' + "1" * 5000 + "}", "{" + '"a":{' * 1000],
    ids=lambda payload: str(payload)[:10],
)
def test_claims_that_are_no_object_are_malformed(payload: str) -> None:
    assert reason_of(signed(payload)) == MALFORMED


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"kid": 1}, MALFORMED),
        ({"kid": ["x"]}, MALFORMED),
        ({"kid": None}, MALFORMED),
        ({"kid": "unknown"}, ""),  # there is but one key
        ({"crit": ["exp"], "exp": 1}, MALFORMED),
        ({"crit": []}, MALFORMED),
        ({"crit": None}, MALFORMED),
        ({"typ": "at+jwt", "x5t": 1}, ""),
    ],
    ids=str,
)
def test_an_odd_header_is_understood_or_refused(headers: dict[str, Any], reason: str) -> None:
    token = signed(claims())
    head = json.dumps({"alg": "HS256"} | headers).encode()
    signing = jwt.utils.base64url_encode(head).decode() + "." + token.split(".")[1]
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        signing.encode(), SECRET.encode()
    )
    assert reason_of(f"{signing}.{jwt.utils.base64url_encode(signature).decode()}") == reason


@pytest.mark.parametrize(
    "token",
    [
        *("x", "..", "a.b", "a.b.c", "a.b.c.d", "é.é.é", "a" * 9000, "W10.e30.x", "bnVsbA.e30.x"),
        jwt.utils.base64url_encode(b"[" * 4000).decode() + ".e30.x",
    ],
    ids=lambda token: token[:10],
)
def test_what_is_no_token_is_malformed(token: str) -> None:
    assert reason_of(token) == MALFORMED


def test_of_several_scopes_the_highest_counts_and_others_are_ignored() -> None:
    for text, scope in (
        ("view", Scope.VIEW),
        ("openid play profile", Scope.PLAY),
        ("admin view", Scope.ADMIN),
        (" play\tcontrol  email ", Scope.CONTROL),
    ):
        assert access(signed(claims(scope=text))).scope is scope


def test_limits_count_a_caller_by_its_subject_else_by_what_its_token_says() -> None:
    anna, renewed = signed(claims()), signed(claims(exp=int(time.time()) + 900))
    assert access(anna).client == access(renewed).client == "anna"
    long_name = "x" * 3000
    assert access(signed(claims(sub=long_name))).client == access(signed(claims(sub=long_name, jti=1))).client
    assert len(access(signed(claims(sub=long_name))).client) <= 128
    without = claims()
    del without["sub"]
    one, other = signed(without), signed(without | {"jti": "2"})
    assert access(one).client != access(other).client
    assert access(one).client
    assert one not in access(one).client


def test_a_token_that_is_signed_anew_is_the_same_client() -> None:
    tokens, said = Tokens(TokenKeys([(None, P256.public_key(), "ES256")])), claims()
    del said["sub"]
    # Such signatures are random, and anybody can turn one into another that is as good.
    one, other = signed(said, P256, "ES256"), signed(said, P256, "ES256")
    assert one != other
    assert access(one, tokens).client == access(other, tokens).client


odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["*", "view", "play admin", SESSION_ID, SESSION_ID.upper(), 2**31, 10**12]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
odd_claims = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("exp", "nbf", "iat", "sid", "sub", "scope", "aud", "iss", "jti"), odd),
).map(lambda changes: claims(**changes))
odd_headers = st.fixed_dictionaries({}, optional={"typ": st.text(max_size=5), "x": odd, "kid": st.text()})
odd_tokens = st.builds(lambda said, headers: signed(said, **headers), odd_claims, odd_headers)


@given(odd_tokens, st.sampled_from(["", "here"]), st.sampled_from(["", "there"]))
@examples(300)
def test_whatever_is_signed_is_understood_or_refused_for_a_reason(
    token: str, audience: str, issuer: str
) -> None:
    tokens = Tokens(TokenKeys([(None, SECRET.encode(), "HS256")]), audience, issuer)
    reason = reason_of(token, tokens)
    assert not reason or reason in REASONS


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path = tmp_path_factory.mktemp("keys") / "secret"
    path.write_text(SECRET)
    server = ServerProcess(f"--jwt-secret-file={path}", "--rate-limit-general=0")
    yield server
    assert server.stop() == 0
    assert [line for line in server.log_lines if '"error"' in line or "Traceback" in line] == []


@given(odd_tokens)
@examples(40)
def test_whatever_is_signed_is_no_error_of_the_servers(server: ServerProcess, token: str) -> None:
    async def asked() -> None:
        headers = {"Authorization": f"Bearer {token}"}
        commands = [("GET", ""), ("POST", "/switch"), ("POST", "/messages"), ("GET", "/events")]
        statuses = []
        for method, path in commands:
            answer = await request(f"{server.url}/v1/sessions/{SESSION_ID}{path}", method, None, headers)
            statuses.append(answer.status)
            if answer.status == 401:
                assert answer.body["error"]["details"]["reason"] in REASONS
        assert set(statuses) <= {400, 401, 403, 404, 429}
        url = f"{server.ws_url}/ws?sessionId={SESSION_ID}"
        async with await WsClient.connect(url, headers=headers) as client:
            first = await client.recv()
            if isinstance(first, Closed):
                assert first.code in (4501, 4503)
                assert set(statuses) & {401, 403}
            else:
                assert first["type"] == "CONNECTED"

    asyncio.run(asked())


# --- keys ----------------------------------------------------------------------------------------

RSA, WEAK = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 1024)
P256, OTHER_P256 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
P384, P521 = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP521R1())
K1 = ec.generate_private_key(ec.SECP256K1())
ED, ED448 = ed25519.Ed25519PrivateKey.generate(), ed448.Ed448PrivateKey.generate()


def jwk(key: Any, **members: Any) -> dict[str, Any]:
    kinds = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    reader: Any = next((made for kind, made in kinds.items() if isinstance(key, kind)), OKPAlgorithm)
    made: dict[str, Any] = json.loads(reader.to_jwk(key.public_key()))
    made.pop("key_ops", None)
    return made | members


def key_set(path: Path, *keys: Any) -> str:
    path.write_text(json.dumps({"keys": keys}))
    return str(path)


# What a realm of Keycloak publishes, with all its providers on.
REALM = [
    jwk(RSA, kid="sig", use="sig", alg="RS256", x5c=["MIIC"], x5t="x"),
    jwk(rsa.generate_private_key(65537, 2048), kid="enc", use="enc", alg="RSA-OAEP"),
    jwk(P384, kid="p384", use="sig", alg="ES384"),
    jwk(P521, kid="p521", use="sig", alg="ES512"),
    jwk(P256, kid="p256", use="sig", alg="ES256"),
    jwk(ED, kid="ed", use="sig", alg="EdDSA"),
    jwk(ED448, kid="ed448", use="sig", alg="EdDSA"),
]
UNFIT = {
    "for encryption": jwk(P256, use="enc"),
    "of another algorithm": jwk(RSA, alg="RS512"),
    "for padding of another kind": jwk(RSA, alg="PS256"),
    "for wrapping keys": jwk(RSA, alg="RSA-OAEP-256"),
    "of no operation": jwk(P256, key_ops=[]),
    "for signing": jwk(P256, key_ops=["sign"]),
    "operations that are no list": jwk(P256, key_ops="verify"),
    "too weak": jwk(WEAK),
    "another curve": jwk(P384),
    "a curve of coins": jwk(K1),
    "Ed448": jwk(ED448),
    "X25519": {"kty": "OKP", "crv": "X25519", "x": "3p7bfXt9wbTTW2HC7OQ1Nz-DQ8hbeGdNrfx-FG-IK08"},
    "a secret": {"kty": "oct", "k": "c2VjcmV0" * 8},
    "a private key": json.loads(ECAlgorithm.to_jwk(P256)),
    "beside the curve": jwk(P256) | {"y": jwk(OTHER_P256)["y"]},
    "cut off": jwk(P256, x="AA"),
    "not base64": jwk(RSA, n="!"),
    "without its numbers": {"kty": "RSA"},
    "numbers of another kind": jwk(RSA, n=5),
    "a name that is none": jwk(P256, kid=5),
    "a kind that is none": {"kty": ["RSA"]},
    "a curve that is none": jwk(P256, crv=["P-256"]),
    "an algorithm that is none": jwk(P256, alg=["ES256"]),
    "no object": 5,
    "nothing": {},
}


def test_of_a_realms_keys_those_that_fit_are_used_and_only_for_what_they_are(tmp_path: Path) -> None:
    tokens = Tokens(TokenKeys.read("", key_set(tmp_path / "realm.json", *REALM)))
    said = claims()
    for key, algorithm, kid in ((RSA, "RS256", "sig"), (P256, "ES256", "p256"), (ED, "EdDSA", "ed")):
        assert reason_of(signed(said, key, algorithm, kid=kid), tokens) == ""
        for other in ("enc", "p384", "p521", "ed448"):
            # A key that was left out is as good as unknown; those that fit are tried.
            assert reason_of(signed(said, key, algorithm, kid=other), tokens) == ""
    for key, algorithm, kid in (
        (RSA, "RS512", "sig"),
        (RSA, "PS256", "sig"),
        (P384, "ES384", "p384"),
        (P521, "ES512", "p521"),
        (ED448, "EdDSA", "ed448"),
        (P256, "ES256", "sig"),
    ):
        assert reason_of(signed(said, key, algorithm, kid=kid), tokens) == "signature"


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
@pytest.mark.parametrize("unfit", UNFIT.values(), ids=UNFIT)
def test_a_key_that_does_not_fit_is_left_out_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, unfit: Any
) -> None:
    path = tmp_path / "keys.json"
    tokens = Tokens(TokenKeys.read("", key_set(path, unfit, jwk(OTHER_P256, kid="good"))))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(path) in caplog.text
    assert "is not used" in caplog.text
    assert reason_of(signed(claims(), OTHER_P256, "ES256"), tokens) == ""
    for key, algorithm in ((P256, "ES256"), (RSA, "RS256"), (WEAK, "RS256"), (RSA, "RS512"), (P384, "ES384")):
        assert reason_of(signed(claims(), key, algorithm), tokens) == "signature"
    with pytest.raises(ValueError, match="no key in it can be used"):
        TokenKeys.read("", key_set(path, unfit))


def test_a_set_without_a_usable_key_ends_the_start_with_one_line(tmp_path: Path) -> None:
    path = key_set(tmp_path / "keys.json", UNFIT["for encryption"], UNFIT["too weak"])
    done = lockstep(f"--jwt-public-key-file={path}", "--port=0")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert path in done.stderr
    assert "its use is 'enc'" in done.stderr


def test_a_weak_key_of_a_file_ends_the_start_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "keys.pem"
    pems = [
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in (P256, WEAK)
    ]
    path.write_bytes(b"".join(pems))
    done = lockstep(f"--jwt-public-key-file={path}", "--port=0")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "an RSA key needs 2048 bits or more, this has 1024" in done.stderr


# --- without a token -----------------------------------------------------------------------------


async def test_where_anybody_may_view_nobody_may_do_more_and_a_bad_token_is_none(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    server = ServerProcess(f"--jwt-secret-file={tmp_path / 'secret'}", "--anonymous=view")
    try:
        admin = {"Authorization": f"Bearer {signed(claims(sid='*', scope='admin'))}"}
        body = {
            "sync_mode": "count_up",
            "session_id": SESSION_ID,
            "participants": [{"participant_id": SESSION_ID}],
        }
        assert (await server.call("POST", "/v1/sessions", body, admin)).status == 201
        path = f"/v1/sessions/{SESSION_ID}"
        assert (await server.call("GET", path)).status == 200
        assert (await server.call("GET", f"{path}/events")).status == 200
        for method, refused in (
            ("POST", f"{path}/start"),
            ("POST", f"{path}/switch"),
            ("POST", f"{path}/messages"),
            ("DELETE", path),
            ("GET", "/v1/sessions"),
            ("POST", "/v1/sessions"),
        ):
            answer = await server.call(method, refused)
            assert (answer.status, answer.body["error"]["details"]["reason"]) == (403, "scope")
        url = f"{server.ws_url}/ws?sessionId={SESSION_ID}"
        async with await WsClient.connect(url) as client:
            assert (await client.recv())["type"] == "CONNECTED"
        for bad, reason in ((signed(claims(), "x" * 40), "signature"), (signed(claims(exp=1)), "expired")):
            answer = await server.call("GET", path, None, {"Authorization": f"Bearer {bad}"})
            assert (answer.status, answer.body["error"]["details"]["reason"]) == (401, reason)
            async with await WsClient.connect(f"{url}&token={bad}") as client:
                assert (await client.recv()).code == 4501
    finally:
        server.stop()


def test_anonymous_is_none_or_view() -> None:
    done = lockstep("check-config", "--anonymous=play")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--anonymous" in done.stderr
