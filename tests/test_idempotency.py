"""Idempotency-Key: a request that comes again is done once, and told the same."""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest

from tests.support.processes import Answer, ServerProcess, request
from tests.support.redis_server import Proxy, RedisServer
from tests.support.ws_client import WsClient

CHESS = {
    "sync_mode": "per_participant",
    "participants": [{"participant_id": str(uuid4()), "total_time_ms": 60_000} for _ in range(2)],
}


@pytest.fixture(scope="module", params=["memory", "redis"])
def urls(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Of processes that share their sessions: one on memory, two on Redis."""
    if request.param == "memory":
        server = ServerProcess()
        yield [server.url, server.url]
        server.stop()
        return
    redis = RedisServer()
    servers = [ServerProcess(f"--broker={redis.url}") for _ in range(2)]
    yield [server.url for server in servers]
    for server in servers:
        server.stop()
    redis.close()


async def post(url: str, path: str, body: Any = None, key: str | None = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        named["Idempotency-Key"] = key
    return await request(url + path, "POST", body, named)


async def running(url: str, **fields: Any) -> str:
    created = await post(url, "/v1/sessions", CHESS | fields)
    session_id: str = created.data["session_id"]
    await post(url, f"/v1/sessions/{session_id}/start")
    return session_id


async def version(url: str, session_id: str) -> int:
    read = await request(f"{url}/v1/sessions/{session_id}", "GET", None, {})
    found: int = read.data["version"]
    return found


async def test_a_switch_that_comes_again_is_told_the_same_and_applied_no_more(urls: list[str]) -> None:
    session_id, key = await running(urls[0]), uuid4().hex
    path = f"/v1/sessions/{session_id}/switch"
    first = await post(urls[0], path, key=key)
    again = await post(urls[1], path, key=key)
    assert (first.status, again.status) == (200, 200)
    assert again.raw == first.raw
    assert again.headers["etag"] == first.headers["etag"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert await version(urls[0], session_id) == 3
    assert (await post(urls[1], path, key=uuid4().hex)).data["version"] == 4


async def test_a_session_created_again_is_the_same_session(urls: list[str]) -> None:
    key = uuid4().hex
    first, again = [await post(url, "/v1/sessions", CHESS, key) for url in urls]
    assert (first.status, again.status) == (201, 201)
    assert again.raw == first.raw
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotent-replayed"] == "true"


async def test_a_message_sent_again_is_published_once(urls: list[str]) -> None:

    session_id, key = await running(urls[0]), uuid4().hex
    path = f"/v1/sessions/{session_id}/messages"
    async with await WsClient.connect(f"{urls[0].replace('http', 'ws')}/ws?sessionId={session_id}") as client:
        assert (await client.recv())["type"] == "CONNECTED"
        for url in (*urls, *urls):
            assert (await post(url, path, {"type": "NOTE", "n": 1}, key)).status == 202
        assert (await post(urls[1], path, {"type": "NOTE", "n": 2}, uuid4().hex)).status == 202
        assert [(await client.recv())["n"] for _ in range(2)] == [1, 2]


async def test_newcomers_without_an_id_are_seated_once_however_often_it_is_asked(urls: list[str]) -> None:
    session_id, key = await running(urls[0]), uuid4().hex
    path = f"/v1/sessions/{session_id}/seat"
    body = {"participants": [{"total_time_ms": 60_000}, {"total_time_ms": 50_000}]}
    answers = await asyncio.gather(*(post(url, path, body, key) for url in urls * 4))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.raw for answer in answers}) == 1
    assert len({seat["participant_id"] for seat in answers[0].data["participants"]}) == 4
    assert await version(urls[0], session_id) == 3


async def test_of_newcomers_at_once_all_are_seated_each_with_an_id_of_its_own(urls: list[str]) -> None:
    session_id = await running(urls[0])
    body = {"participants": [{"total_time_ms": 60_000}, {"total_time_ms": 60_000}]}
    answers = await asyncio.gather(*(post(url, f"/v1/sessions/{session_id}/seat", body) for url in urls * 4))
    seats = max((answer.data for answer in answers), key=lambda state: state["version"])["participants"]
    assert sorted(answer.data["version"] for answer in answers) == list(range(3, 11))
    assert [seat["participant_index"] for seat in seats] == list(range(18))
    assert len({seat["participant_id"] for seat in seats}) == 18


@pytest.mark.parametrize("path", ["/switch", "/pause", "/seat", "/annotate", "/messages", "/disconnect", ""])
async def test_the_same_key_with_another_body_is_refused(urls: list[str], path: str) -> None:
    session_id, key = await running(urls[0]), uuid4().hex
    bodies = {
        "/switch": [{}, {"expected_version": 99}],
        "/pause": [{"data": {"n": 1}}, {"data": {"n": 1.0}}],
        "/seat": [{"participants": [{"total_time_ms": time_ms}]} for time_ms in (1000, 1001)],
        "/annotate": [{"metadata": {"a": value}} for value in (None, {})],
        "/messages": [{"type": "A"}, {"type": "B"}],
        "/disconnect": [{"subject": "anna"}, {"subject": "Anna"}],
        "": [CHESS, CHESS | {"metadata": {"a": 1}}],
    }[path]
    full = f"/v1/sessions/{session_id}{path}" if path else "/v1/sessions"
    assert (await post(urls[0], full, bodies[0], key)).status in (200, 201, 202)
    other = await post(urls[1], full, bodies[1], key)
    assert (other.status, other.body["error"]["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_a_key_belongs_to_one_path(urls: list[str]) -> None:
    key = uuid4().hex
    first, second = await running(urls[0]), await running(urls[0])
    for session_id in (first, second):
        answer = await post(urls[0], f"/v1/sessions/{session_id}/switch", key=key)
        assert "idempotent-replayed" not in answer.headers
        assert await version(urls[0], session_id) == 3


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/switch"), ("POST", "/messages"), ("POST", ""), ("DELETE", "")],
    ids=["command", "message", "creation", "deletion"],
)
async def test_a_request_with_a_key_that_cannot_be_looked_up_is_not_said_to_be_not_applied(
    method: str, path: str
) -> None:
    """It may be another process that did it, and died before it answered."""
    redis = RedisServer()
    servers: list[ServerProcess] = []
    try:
        async with Proxy(redis.port) as way:
            for url in (redis.url, way.url):
                servers.append(await asyncio.to_thread(ServerProcess, f"--broker={url}"))
            done, cut_off = (server.url for server in servers)
            session_id, key = await running(done), {"Idempotency-Key": uuid4().hex}
            body = {"/switch": {}, "/messages": {"type": "NOTE"}, "": CHESS}[path]
            asked = f"/v1/sessions/{session_id}{path}" if path or method == "DELETE" else "/v1/sessions"
            call = (method, None if method == "DELETE" else body, key)
            first = await request(done + asked, *call)
            assert first.status in (200, 201, 202, 204)
            way.refuses = True
            way.cut()
            again = await request(cut_off + asked, *call)
            assert again.status == 503
            assert again.body["error"]["details"] == {"outcome": "unknown"}
            # Without a key it is a request of its own, of which nothing was sent.
            other = await request(cut_off + asked, *call[:2], {})
            assert other.body["error"]["details"] == {"outcome": "not_applied"}
    finally:
        for server in servers:
            await asyncio.to_thread(server.stop)
        redis.close()


async def test_a_creation_with_a_key_that_was_looked_up_in_vain_is_said_to_be_not_applied() -> None:
    redis = RedisServer()
    server = await asyncio.to_thread(ServerProcess, f"--broker={redis.url}")
    try:
        first = await post(server.url, "/v1/sessions", CHESS, key="done")
        with redis.client as client:
            client.replicaof("127.0.0.1", "1")  # it takes no changes, and can be read
        again = await post(server.url, "/v1/sessions", CHESS, key="done")
        assert (again.status, again.raw) == (201, first.raw)
        new = await post(server.url, "/v1/sessions", CHESS, key="new")
        assert (new.status, new.body["error"]["details"]) == (503, {"outcome": "not_applied"})
    finally:
        await asyncio.to_thread(server.stop)
        redis.close()


async def test_what_was_refused_is_decided_anew(urls: list[str]) -> None:
    session_id, key = await running(urls[0]), uuid4().hex
    path = f"/v1/sessions/{session_id}/resume"
    assert (await post(urls[0], path, key=key)).status == 400  # it is running
    await post(urls[0], f"/v1/sessions/{session_id}/pause")
    assert (await post(urls[1], path, key=key)).status == 200


async def test_of_twenty_at_once_one_is_applied(urls: list[str]) -> None:
    session_id, key = await running(urls[0]), uuid4().hex
    path = f"/v1/sessions/{session_id}/switch"
    answers = await asyncio.gather(*(post(urls[n % 2], path, key=key) for n in range(20)))
    assert {answer.raw for answer in answers} == {answers[0].raw}
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert await version(urls[0], session_id) == 3


async def test_a_long_answer_is_told_again_as_the_current_state(urls: list[str]) -> None:
    seats = [{"participant_id": str(uuid4()), "total_time_ms": 60_000} for _ in range(50)]
    key = uuid4().hex
    first = await post(urls[0], "/v1/sessions", CHESS | {"participants": seats}, key)
    session_id = first.data["session_id"]
    await post(urls[0], f"/v1/sessions/{session_id}/start")
    again = await post(urls[1], "/v1/sessions", CHESS | {"participants": seats}, key)
    assert again.headers["idempotent-replayed"] == "true"
    assert (again.status, again.data["session_id"], again.data["version"]) == (201, session_id, 2)


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"Idempotency-Key": "x" * 256}, "Idempotency-Key"),
        ({"Idempotency-Key": "k", "Idempotency-TTL": "0"}, "Idempotency-TTL"),
        ({"Idempotency-Key": "k", "Idempotency-TTL": "86401"}, "Idempotency-TTL"),
        # Its whole value counts, not what it begins with.
        ({"Idempotency-Key": "k", "Idempotency-TTL": "0000000001999999999"}, "Idempotency-TTL"),
        ({"Idempotency-Key": "k", "Idempotency-TTL": "0000000001" + "9" * 30}, "Idempotency-TTL"),
        ({"Idempotency-Key": "k", "Idempotency-TTL": "0000000001" + "9" * 5_000}, "Idempotency-TTL"),
        ({"Idempotency-Key": "k", "Idempotency-TTL": "0" * 5_000}, "Idempotency-TTL"),
        ({"Idempotency-Key": "k", "Idempotency-TTL": "-60"}, "Idempotency-TTL"),
        ({"Idempotency-Key": "k", "Idempotency-TTL": "+60"}, "Idempotency-TTL"),
        ({"Idempotency-Key": "k", "Idempotency-TTL": "6e1"}, "Idempotency-TTL"),
        ({"Idempotency-Key": "k", "Idempotency-TTL": "soon"}, "Idempotency-TTL"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value.values())[:24],
)
async def test_a_bad_key_is_refused_and_named(urls: list[str], headers: dict[str, str], field: str) -> None:
    session_id = await running(urls[0])
    answer = await request(f"{urls[0]}/v1/sessions/{session_id}/switch", "POST", None, headers)
    assert answer.status == 400
    assert [each["field"] for each in answer.body["error"]["details"]] == [field]
    assert await version(urls[0], session_id) == 2


async def test_a_key_is_kept_for_a_minute_at_least_and_a_day_unless_its_caller_says_less() -> None:
    redis = RedisServer()
    server = ServerProcess(f"--broker={redis.url}")
    try:
        session_id = await running(server.url)
        for ttl, kept_s in ((None, 86_400), ("1", 60), ("59", 60), ("61", 61), ("86400", 86_400)):
            before = set(redis.client.keys("idempotency:*"))
            headers = {} if ttl is None else {"Idempotency_TTL": ttl}
            await post(server.url, f"/v1/sessions/{session_id}/switch", key=uuid4().hex, **headers)
            (name,) = set(redis.client.keys("idempotency:*")) - before
            left_ms = redis.client.pttl(name)
            assert kept_s * 1000 - 20_000 < left_ms <= kept_s * 1000
    finally:
        server.stop()
        redis.close()


# --- the same request, and another ---------------------------------------------------------------


ANNA, BERT = (seat["participant_id"] for seat in CHESS["participants"])
NEWCOMER = "0a1b2c3d-0000-4000-8000-00000000abcd"
RESPELLED = {
    "switch": (
        "/switch",
        b'{"next_participant_id":"%s"}' % BERT.encode(),
        b' {\n"expected_version" : null, "next_participant_id" : "%s" }' % BERT.upper().encode(),
    ),
    "no body": ("/switch", b"", b'{"expected_participant_id":null}'),
    "adjust": (
        "/adjust",
        b'{"target":"%s","delta_ms":1000}' % ANNA.encode(),
        b'{"delta_ms":1000,"target":"%s"}' % ANNA.upper().encode(),
    ),
    "seat": (
        "/seat",
        b'{"participants":[{"participant_id":"%s","total_time_ms":1000}]}' % NEWCOMER.encode(),
        b'{"participants": [{"group_id": null, "total_time_ms": 1000, "participant_id": "%s"}]}'
        % NEWCOMER.upper().encode(),
    ),
    "unseat": (
        "/unseat",
        b'{"participant_id":"%s"}' % BERT.encode(),
        b'{"participant_id":"%s","expected_version":null,"data":null}' % BERT.upper().encode(),
    ),
    "annotate": (
        "/annotate",
        b'{"metadata":{"a":{"x":1,"y":null},"b":"A"}}',
        b'{"metadata": {"b": "\\u0041", "a": {"y":null, "x":1}}}',
    ),
    "data": (
        "/switch",
        b'{"data":{"move":"e4","at":[1,2.5,null]}}',
        b'{"data": {"at": [1, 2.5, null], "move": "\\u00654"}, "next_participant_id": null}',
    ),
    "message": (
        "/messages",
        b'{"type":"A","x":{"b":1,"a":[2]}}',
        b'{"x": {"a": [2], "b":1}, "type":"\\u0041"}',
    ),
    "disconnect": ("/disconnect", b'{"subject":"Anna"}', b'{ "subject": "\\u0041nna" }'),
}


@pytest.mark.parametrize("kind", RESPELLED)
async def test_a_request_spelled_otherwise_is_the_same(urls: list[str], kind: str) -> None:
    end, body, respelled = RESPELLED[kind]
    session_id, key = await running(urls[0]), uuid4().hex
    first = await request(f"{urls[0]}/v1/sessions/{session_id}{end}", "POST", body, {"Idempotency-Key": key})
    for url, each in zip(urls, (body, respelled), strict=True):
        path = f"/v1/sessions/{session_id.upper()}{end}"
        again = await request(url + path, "POST", each, {"Idempotency-Key": key})
        assert (again.status, again.raw) == (first.status, first.raw)
        assert again.headers["idempotent-replayed"] == "true"


async def test_a_creation_that_spells_out_its_defaults_is_the_same(urls: list[str]) -> None:
    key = uuid4().hex
    first = await post(urls[0], "/v1/sessions", CHESS, key)
    seats = [
        {"group_id": None, "participant_index": place} | seat
        for place, seat in enumerate(CHESS["participants"])
    ]
    spelled_out = {"metadata": {}, "increment_ms": 0, "on_timeout": "flag", "participants": seats}
    again = await post(urls[1], "/v1/sessions", spelled_out | {"sync_mode": CHESS["sync_mode"]}, key)
    assert (again.status, again.raw) == (201, first.raw)
    other = await post(urls[1], "/v1/sessions", CHESS | {"increment_ms": 1}, key)
    assert other.status == 422


# --- a record does not outlive its session -------------------------------------------------------


@pytest.mark.parametrize("what", ["creation", "command", "message", "disconnect"])
async def test_a_record_does_not_outlive_its_epoch(urls: list[str], what: str) -> None:
    session_id, key = str(uuid4()), uuid4().hex
    body = CHESS | {"session_id": session_id}
    await post(urls[0], "/v1/sessions", body, uuid4().hex if what != "creation" else key)
    path, body_of_it = {
        "creation": ("/v1/sessions", body),
        "command": (f"/v1/sessions/{session_id}/start", None),
        "message": (f"/v1/sessions/{session_id}/messages", {"type": "NOTE"}),
        "disconnect": (f"/v1/sessions/{session_id}/disconnect", {"subject": "anna"}),
    }[what]
    if what != "creation":
        assert (await post(urls[0], path, body_of_it, key)).status < 300
    await request(f"{urls[0]}/v1/sessions/{session_id}", "DELETE")
    gone = await post(urls[1], path, body_of_it, key)
    assert (gone.status, gone.body["error"]["code"]) == (404, "SESSION_NOT_FOUND")
    created = await post(urls[0], "/v1/sessions", body, uuid4().hex)
    for url in urls:
        anew = await post(url, path, body_of_it, key)
        assert (anew.status, anew.body["error"]["code"]) == (409, "CONFLICT")
        assert anew.body["error"]["details"]["state"] == created.data
        assert "idempotent-replayed" not in anew.headers
    assert await version(urls[0], session_id) == 1


# --- deletion ------------------------------------------------------------------------------------


async def delete(url: str, session_id: str, key: str | None = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        named["Idempotency-Key"] = key
    return await request(f"{url}/v1/sessions/{session_id}", "DELETE", None, named)


@pytest.mark.parametrize("was_there", [True, False])
async def test_a_deletion_that_comes_again_never_touches_a_later_session(
    urls: list[str], was_there: bool
) -> None:
    session_id, key = str(uuid4()), uuid4().hex
    body = CHESS | {"session_id": session_id}
    if was_there:
        await post(urls[0], "/v1/sessions", body)
    first = await delete(urls[0], session_id, key)
    assert (first.status, first.headers.get("idempotent-replayed")) == (204, None)
    await post(urls[0], "/v1/sessions", body)
    for url in urls:
        again = await delete(url, session_id.upper(), key)
        assert (again.status, again.raw, again.headers["idempotent-replayed"]) == (204, b"", "true")
    assert await version(urls[0], session_id) == 1
    assert (await delete(urls[1], session_id, uuid4().hex)).status == 204
    assert (await request(f"{urls[0]}/v1/sessions/{session_id}", "GET")).status == 404


async def test_a_deletion_takes_if_match(urls: list[str]) -> None:
    session_id, key = await running(urls[0]), uuid4().hex
    path = f"{urls[0]}/v1/sessions/{session_id}"
    read = await request(path, "GET")
    state, tag = read.data, read.headers["etag"]
    epoch = state["epoch"]
    for stale in (f'"{epoch}-1"', f'"{epoch}-2-00000000"', f"W/{tag}", '"0000000000000-2"'):
        refused = await delete(urls[1], session_id, key, If_Match=stale)
        assert (refused.status, refused.body["error"]["code"]) == (412, "CONFLICT")
        assert refused.body["error"]["details"] == {"state": state}
    assert (await request(path, "GET")).status == 200
    assert (await delete(urls[1], session_id, key, If_Match=tag)).status == 204
    assert (await request(path, "GET")).status == 404
    # There is none: which is what its caller wants.
    assert (await delete(urls[0], session_id, If_Match=tag)).status == 204
    await post(urls[0], "/v1/sessions", CHESS | {"session_id": session_id})
    again = await delete(urls[0], session_id, key, If_Match=tag)
    assert (again.status, again.headers["idempotent-replayed"]) == (204, "true")
    assert (await delete(urls[0], session_id, If_Match=tag)).status == 412
    assert (await delete(urls[0], session_id, If_Match="*")).status == 204
    anew = await post(urls[0], "/v1/sessions", CHESS | {"session_id": session_id})
    assert (await delete(urls[0], session_id, If_Match=f'"x", "{anew.data["epoch"]}-1"')).status == 204


async def test_a_deletion_by_what_was_seen_deletes_nothing_else(urls: list[str]) -> None:
    """Of a deletion and a switch at once, both by the same ETag, one is made."""
    for n in range(20):
        session_id = await running(urls[0])
        path = f"/v1/sessions/{session_id}"
        tag = (await request(urls[0] + path, "GET")).headers["etag"]
        order = [delete(urls[n % 2], session_id, If_Match=tag), post(urls[0], f"{path}/switch", If_Match=tag)]
        deleted, switched = await asyncio.gather(*order)
        assert (deleted.status, switched.status) in ((204, 404), (412, 200))
        assert (await request(urls[0] + path, "GET")).status == (404 if deleted.status == 204 else 200)


async def test_a_deletion_is_compared_after_settling(urls: list[str]) -> None:
    session_id = await running(urls[0])
    body = {"target": ANNA, "delta_ms": -86_400_000}
    adjusted = await post(urls[0], f"/v1/sessions/{session_id}/adjust", body)
    assert adjusted.data["version"] == 3
    refused = await delete(urls[0], session_id, If_Match=adjusted.headers["etag"])
    assert (refused.status, refused.body["error"]["details"]["state"]["version"]) == (412, 4)


# --- what is told again --------------------------------------------------------------------------


async def test_a_long_answer_to_a_switch_is_told_again_in_its_form_and_with_its_extras(
    urls: list[str],
) -> None:
    seats = [{"participant_id": str(uuid4()), "total_time_ms": 60_000} for _ in range(50)]
    session_id, key = await running(urls[0], participants=seats), uuid4().hex
    out = {"target": seats[0]["participant_id"], "delta_ms": -86_400_000}
    await post(urls[0], f"/v1/sessions/{session_id}/adjust", out)
    path = f"/v1/sessions/{session_id}/switch"
    first = await post(urls[0], path, key=key)
    assert first.data["expired_participant_id"] == seats[0]["participant_id"]
    paused = await post(urls[0], f"/v1/sessions/{session_id}/pause")
    again = await post(urls[1], path, key=key)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["etag"] == paused.headers["etag"]
    assert again.data.keys() == first.data.keys()
    assert again.data["expired_participant_id"] == seats[0]["participant_id"]
    assert (again.data["status"], again.data["version"]) == ("paused", paused.data["version"])


async def test_a_lap_is_told_again_with_its_time(urls: list[str]) -> None:
    created = await post(urls[0], "/v1/sessions", {"sync_mode": "count_up"})
    session_id, key = created.data["session_id"], uuid4().hex
    await post(urls[0], f"/v1/sessions/{session_id}/start")
    answers = [await post(url, f"/v1/sessions/{session_id}/switch", key=key) for url in urls]
    assert answers[0].data["lap_ms"] == answers[1].data["lap_ms"]
    assert answers[0].headers["etag"] == answers[1].headers["etag"]


# --- received too long ago -----------------------------------------------------------------------


async def test_what_a_proxy_received_before_its_key_would_be_forgotten_is_not_done() -> None:
    servers = [ServerProcess("--trusted-proxies=127.0.0.1"), ServerProcess("--trusted-proxies=192.0.2.1")]
    try:
        for server, is_believed in zip(servers, (True, False), strict=True):
            session_id = await running(server.url)
            path = f"/v1/sessions/{session_id}"

            async def switch(
                told: str, ttl: str = "60", path: str = path, server: ServerProcess = server
            ) -> Answer:
                headers = {"Idempotency_TTL": ttl, "X_Request_Start": told}
                return await post(server.url, f"{path}/switch", key=uuid4().hex, **headers)

            def ago(age_s: float) -> str:
                return f"t={time.time() - age_s:.3f}"

            for told, ttl in ((ago(61), "60"), (ago(61), "1"), (ago(101), "100"), ("t=1.000", "86400")):
                answer = await switch(told, ttl)
                if is_believed:
                    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                    assert answer.body["error"]["code"] == "RECEIVED_TOO_LONG_AGO"
                    assert answer.body["error"]["details"] == {"outcome": "not_applied"}
                else:
                    assert answer.status == 200
            for told, ttl in (
                *((ago(5), "1"), (ago(61), "86400"), (ago(-3600), "60"), ("", "60"), ("soon", "60")),
                *((f"t={time.time() * 1000:.0f}", "60"), ("1.000", "60"), ("t=-1", "60"), ("t=1,t=2", "60")),
                *(("t=1e1", "60"), ("t=nan", "60"), ("t=\N{ARABIC-INDIC DIGIT ONE}", "60")),
            ):
                assert (await switch(told, ttl)).status == 200, told
            bodies = {"": CHESS, f"/{session_id}/messages": {"type": "NOTE"}, f"/{session_id}/pause": None}
            for end, body in bodies.items():
                old = {"X_Request_Start": ago(86_401)}
                answer = await post(server.url, f"/v1/sessions{end}", body, uuid4().hex, **old)
                assert (answer.status == 503) is is_believed
            answer = await delete(server.url, session_id, uuid4().hex, X_Request_Start=ago(86_401))
            assert (answer.status == 503) is is_believed
            listed = (await request(f"{server.url}/v1/sessions", "GET")).data["sessions"]
            assert [each["session_id"] for each in listed if each["session_id"] == session_id] == (
                [session_id] if is_believed else []
            )
    finally:
        for server in servers:
            server.stop()


# --- version 0.1, during a rolling upgrade -------------------------------------------------------


def named_by_former(path: str, subject: str, key: str) -> str:
    named = "\0".join(("POST", path, subject, key)).encode()
    return f"idempotency:{hashlib.blake2b(named, digest_size=20).hexdigest()}"


def hashed_by_former(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()


SECRET = "a secret of more than thirty-two bytes, for tests only"


@pytest.fixture
def upgraded(tmp_path: Path) -> Iterator[tuple[RedisServer, ServerProcess]]:
    """A process whose Redis processes of version 0.1 share."""
    (tmp_path / "secret").write_text(SECRET)
    redis = RedisServer()
    server = ServerProcess(f"--broker={redis.url}", f"--jwt-secret-file={tmp_path / 'secret'}")
    yield redis, server
    server.stop()
    redis.close()


def token(**claims: Any) -> str:
    body = {"scope": "admin", "sid": "*", "exp": int(time.time()) + 600} | claims
    return f"Bearer {jwt.encode(body, SECRET, algorithm='HS256')}"


@pytest.mark.parametrize("subject", ["", "a back end"])
async def test_what_version_0_1_has_done_is_told_again(
    upgraded: tuple[RedisServer, ServerProcess], subject: str
) -> None:
    redis, server = upgraded
    authorization = token(sub=subject) if subject else token()
    created = await post(server.url, "/v1/sessions", CHESS, Authorization=authorization)
    session_id, epoch = created.data["session_id"], created.data["epoch"]
    cases = {
        "/start": (b" { } ", {"status": 200, "tag": f'"{epoch}-2"', "commit": "Zk8w_q1B"}),
        "/messages": (b'{"type" : "NOTE"}', {"status": 202, "tag": "", "commit": ""}),
    }
    for end, (body, record) in cases.items():
        path, key = f"/v1/sessions/{session_id}{end}", uuid4().hex
        head = {"body": hashed_by_former(body), "session_id": session_id, "is_kept": True} | record
        kept = json.dumps(head, separators=(",", ":")).encode() + b'\n{"as":"then"}'
        redis.client.set(named_by_former(path, subject, key), kept, px=60_000)
        again = await post(server.url, path, body, key, Authorization=authorization)
        assert (again.status, again.raw) == (record["status"], b'{"data":{"as":"then"}}')
        assert again.headers["idempotent-replayed"] == "true"
        other = await post(server.url, path, b'{"type":"OTHER"}', key, Authorization=authorization)
        assert other.status in (400, 422)


async def test_what_is_done_is_found_by_version_0_1(upgraded: tuple[RedisServer, ServerProcess]) -> None:
    redis, server = upgraded
    for subject, authorization in (("", token()), ("", token(iss="other")), ("anna", token(sub="anna"))):
        created = await post(server.url, "/v1/sessions", CHESS, Authorization=authorization)
        session_id = created.data["session_id"]
        cases = {"/start": b" { } ", "/messages": b'{"type" : "NOTE"}', "/switch": b""}
        for end, body in cases.items():
            path, key = f"/v1/sessions/{session_id.upper()}{end}", uuid4().hex
            first = await post(server.url, path, body, key, Authorization=authorization)
            kept = redis.client.get(named_by_former(path, subject, key))
            assert kept is not None
            head, _, answer = kept.partition(b"\n")
            record = json.loads(head)
            assert len(re.findall(rb'"epoch":', head)) == 1, "that version takes no key twice"
            assert record["body"] == hashed_by_former(body)
            assert (record["status"], record["session_id"]) == (first.status, session_id)
            assert (record["tag"] or None, record["is_kept"]) == (first.headers.get("etag"), True)
            assert b'{"data":' + answer + b"}" == first.raw


async def test_a_players_retry_is_told_again_although_the_turn_has_passed(
    upgraded: tuple[RedisServer, ServerProcess],
) -> None:
    _, server = upgraded
    admin, anna, key = token(), token(sub=ANNA, scope="play"), uuid4().hex
    created = await post(server.url, "/v1/sessions", CHESS, Authorization=admin)
    path = f"/v1/sessions/{created.data['session_id']}"
    await post(server.url, f"{path}/start", Authorization=admin)
    first = await post(server.url, f"{path}/switch", key=key, Authorization=anna)
    again = await post(server.url, f"{path}/switch", key=key, Authorization=anna)
    assert (again.status, again.raw) == (200, first.raw)
    assert again.headers["idempotent-replayed"] == "true"
    anew = await post(server.url, f"{path}/switch", key=uuid4().hex, Authorization=anna)
    assert (anew.status, anew.body["error"]["details"]["reason"]) == (403, "turn")
    # Another's key it is, whatever that was used for.
    bert = await post(server.url, f"{path}/switch", key=key, Authorization=token(sub=BERT, scope="play"))
    assert (bert.status, bert.data["version"]) == (200, 4)
    assert "idempotent-replayed" not in bert.headers


async def test_callers_without_a_name_have_keys_of_their_own(
    upgraded: tuple[RedisServer, ServerProcess],
) -> None:
    _, server = upgraded
    one, other, key = token(iss="one"), token(iss="other"), uuid4().hex
    created = [
        await post(server.url, "/v1/sessions", CHESS, key, Authorization=each) for each in (one, other)
    ]
    ids = [answer.data["session_id"] for answer in created]
    assert len(set(ids)) == 2
    again = [await post(server.url, "/v1/sessions", CHESS, key, Authorization=each) for each in (one, other)]
    assert [answer.data["session_id"] for answer in again] == ids
    assert {answer.headers["idempotent-replayed"] for answer in again} == {"true"}
    path = f"/v1/sessions/{ids[0]}/start"
    assert (await post(server.url, path, None, key, Authorization=one)).status == 200
    second = await post(server.url, path, None, key, Authorization=other)
    assert second.body["error"]["code"] == "INVALID_STATE_TRANSITION", "it was another's"
