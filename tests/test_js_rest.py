"""clients/js over REST, in Node: every method, and what becomes of a call on a bad line."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from broker.memory import MemoryBroker
from lockstep.contract import Commit, Outcome
from lockstep.errors import BrokerUnavailable
from tests.support.api import body_of, serving
from tests.support.cable import Cable
from tests.support.node import run_js
from tests.support.processes import ServerProcess, running
from tests.support.tokens import SECRET, token

HTML = b"HTTP/1.1 %d \r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>"
CUT = None
"""In place of an answer: the connection breaks."""

BEGIN = """
    const [url, body, ...more] = args;
    const rest = new client.LockstepRest(url);
    const failing = async (promise) => {
        try { return { returned: await promise }; } catch (error) {
            const { name, code, details, retryAfterMs, status, cause } = error;
            return { name, code, details, retryAfterMs, status, cause: cause?.message };
        }
    };
"""
SOON = "Math.random = () => 0.02;"
"""Where it is not the waiting that counts."""


@pytest.fixture
def cable(rest_process: ServerProcess) -> Iterator[Cable]:
    cable = Cable(rest_process.port)
    yield cable
    cable.close()


def answering(cable: Cable, *answers: bytes | None) -> list[bytes]:
    """Instead of what the server answers to the first requests, it is these; the requests that came."""
    left = list(answers)
    requests: list[bytes] = []

    def on_request(data: bytes) -> bytes:
        requests.append(data)
        return data

    def on_reply(data: bytes) -> Any:
        return left.pop(0) if left else data

    cable.on_request(on_request)
    cable.on_reply(on_reply)
    return requests


# ---- Every method ----


def test_each_method_does_what_it_says(rest_process: ServerProcess) -> None:
    outcome = run_js(
        BEGIN
        + """
        const { session_id: id, status, participants } = await rest.create(body);
        const started = await rest.command(id, "start");
        const switched = await rest.command(id, "switch", { data: { move: "e4" } });
        await rest.message(id, { type: "CHEER" });
        const presence = await rest.presence(id);
        await rest.disconnect(id, "nobody");
        const events = await Array.fromAsync(rest.events(id));
        const later = await Array.fromAsync(rest.events(id, { since: 2, epoch: started.epoch }));
        const running = await Array.fromAsync(rest.list({ status: "running" }));
        const state = await rest.get(id);
        const before = Date.now();
        const { timestamp_ms } = await rest.time();
        const deleted = await rest.delete(id);
        return {
            status,
            started: started.status,
            switched: switched.active_participant_id === participants[1].participant_id,
            presence,
            events: events.map(({ version, type, data }) => [version, type, data ?? null]),
            later: later.map(({ version }) => version),
            isListed: running.some(({ session_id }) => session_id === id),
            version: state.version,
            isNow: Math.abs(timestamp_ms - before) < 60_000,
            deleted: deleted === undefined,
            gone: await failing(rest.get(id)),
            twice: await failing(rest.delete(id)),
        };""",
        rest_process.url,
        body_of(presence=True),
    )
    gone = outcome.pop("gone")
    assert (gone["name"], gone["code"], gone["status"]) == ("LockstepError", "SESSION_NOT_FOUND", 404)
    assert outcome == {
        "status": "pending",
        "started": "running",
        "switched": True,
        "presence": {"present": [], "anonymous": 0, "total": 0},
        "events": [[1, "created", None], [2, "started", None], [3, "switched", {"move": "e4"}]],
        "later": [3],
        "isListed": True,
        "version": 3,
        "isNow": True,
        "deleted": True,
        "twice": {},
    }


def test_a_list_and_a_history_of_several_pages_come_whole_and_once(rest_process: ServerProcess) -> None:
    outcome = run_js(
        BEGIN
        + """
        const [title] = more;
        const create = () => rest.create({ ...body, metadata: { title } });
        const made = await Promise.all(Array.from({ length: 130 }, create));
        const ids = new Set(made.map(({ session_id }) => session_id));
        const all = await Array.fromAsync(rest.list());
        const listed = all.filter(({ metadata }) => metadata.title === title);
        const id = made[0].session_id;
        for (let i = 0; i < 90; i++) {
            await rest.command(id, "annotate", { metadata: { note: `${i} `.padEnd(3_900, "x") } });
        }
        const events = await Array.fromAsync(rest.events(id));
        const some = [];
        for await (const { session_id } of rest.list({ limit: 105 })) some.push(session_id);
        return [
            listed.length, listed.filter(({ session_id }) => ids.has(session_id)).length, some.length,
            events.every(({ version }, place) => version === place + 1) && events.length,
            (await Array.fromAsync(rest.list({ limit: 0 }))).length,
        ];""",
        rest_process.url,
        body_of(),
        str(uuid4()),
    )
    assert outcome == [130, 130, 105, 91, 0]


def test_what_the_server_refuses_is_thrown_with_its_code_at_once(cable: Cable) -> None:
    requests = answering(cable)
    outcome = run_js(
        BEGIN
        + """
        const { session_id: id, epoch } = await rest.create(body);
        return [
            await failing(rest.create({ sync_mode: "sundial", colour: "red" })),
            await failing(rest.command(id, "resume")), await failing(rest.command(id, "../time")),
            await failing(rest.get("no id/")), await failing(rest.presence(id)),
            await failing(Array.fromAsync(rest.events(id, { epoch: "0000000000000" }))),
            await failing(Array.fromAsync(rest.list({ status: "odd" }))),
        ].map(({ name, code, status, details }) => [
            name, code, status, details?.map?.(({ field }) => field) ?? null,
        ]);""",
        cable.url,
        body_of(),
    )
    assert outcome == [
        ["LockstepError", "VALIDATION_ERROR", 400, ["colour", "sync_mode"]],
        ["LockstepError", "INVALID_STATE_TRANSITION", 400, None],
        ["LockstepError", "NOT_FOUND", 404, None],
        ["LockstepError", "VALIDATION_ERROR", 400, ["id"]],
        ["LockstepError", "CONFLICT", 409, None],
        ["LockstepError", "EVENTS_GONE", 410, None],
        ["LockstepError", "VALIDATION_ERROR", 400, ["status"]],
    ]
    assert len(requests) == 1 + len(outcome)


def test_a_change_of_another_state_than_the_one_meant_is_a_conflict(rest_process: ServerProcess) -> None:
    outcome = run_js(
        BEGIN
        + """
        const before = await rest.create(body);
        const id = before.session_id;
        const { epoch, version, commit } = await rest.command(id, "start", {}, { ifMatch: before });
        const meant = await rest.command(id, "switch", {}, { ifMatch: `${epoch}-${version}-${commit}` });
        const late = [
            await failing(rest.command(id, "switch", {}, { ifMatch: before })),
            await failing(rest.delete(id, { ifMatch: before })),
        ];
        const told = late.map(({ code, status, details }) => [code, status, details.state.version]);
        return [meant.version, told];""",
        rest_process.url,
        body_of(),
    )
    assert outcome == [3, [["CONFLICT", 412, 3]] * 2]


def test_addresses_are_taken_as_people_write_them(rest_process: ServerProcess) -> None:
    outcome = run_js(
        BEGIN
        + """
        const asked = async (address) => {
            let asked;
            const fetch = async (request) => {
                asked = request.url;
                return Response.json({ timestamp_ms: 1 });
            };
            await new client.LockstepRest(address, { fetch }).time();
            return asked;
        };
        const some = ["https://a.example", "ws://a.example:81/", "wss://a.example/clocks"];
        some.push("https://a.example/clocks/?x=1#y");
        const { timestamp_ms } = await new client.LockstepRest(url.replace("http", "ws")).time();
        return [await Promise.all(some.map(asked)), timestamp_ms > 0];""",
        rest_process.url,
    )
    addresses = [
        "https://a.example/v1/time",
        "http://a.example:81/v1/time",
        "https://a.example/clocks/v1/time",
        "https://a.example/clocks/v1/time",
    ]
    assert outcome == [addresses, True]


# ---- Once, whatever the line does ----


def test_a_change_whose_answer_is_lost_is_made_once(cable: Cable) -> None:
    requests = answering(cable, CUT, b"HTTP/1.1 201 Created\r\nContent-Length: 900\r\n\r\n{", CUT)
    outcome = run_js(
        SOON
        + BEGIN
        + """
        const { session_id: id } = await new client.LockstepRest(url, { timeoutMs: 4_000 }).create(body);
        const { version } = await rest.command(id, "start");
        const running = await Array.fromAsync(rest.list({ status: "running" }));
        return [version, running.filter(({ session_id }) => session_id === id).length];""",
        cable.url,
        body_of(),
    )
    assert outcome == [2, 1]
    creations = [each for each in requests if each.startswith(b"POST /v1/sessions HTTP")]
    keys = {
        line for each in requests for line in each.lower().splitlines() if line.startswith(b"idempotency-key")
    }
    assert (len(creations), len(keys)) == (4, 2)


def test_a_key_that_is_given_stands_for_one_change_in_all_calls(rest_process: ServerProcess) -> None:
    outcome = run_js(
        BEGIN
        + """
        const [idempotencyKey] = more;
        const first = await rest.create(body, { idempotencyKey });
        const second = await rest.create(body, { idempotencyKey });
        const other = await failing(rest.create({ ...body, increment_ms: 1_000 }, { idempotencyKey }));
        return [first.session_id === second.session_id, other.code, other.status];""",
        rest_process.url,
        body_of(),
        str(uuid4()),
    )
    assert outcome == [True, "IDEMPOTENCY_KEY_REUSED", 422]


# ---- Later, when the server says or can ----


class Failing(MemoryBroker):
    """Has failures for the next commits, in which nothing is stored, or all the same."""

    failures: list[str] = []

    async def commit(self, commit: Commit) -> Outcome:
        outcome = self.failures.pop(0) if self.failures else ""
        if outcome != "not_applied":
            applied = await super().commit(commit)
        if outcome:
            raise BrokerUnavailable(outcome)
        return applied


async def test_a_change_is_asked_again_after_503(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Failing()
    broker.failures = ["not_applied", "unknown"]
    monkeypatch.setattr("server.open_broker", lambda *_: broker)
    script = (
        SOON
        + BEGIN
        + """
        const { session_id: id, version } = await rest.create(body);
        return [version, (await rest.command(id, "start")).version];"""
    )
    async with serving() as api:
        outcome = await asyncio.to_thread(run_js, script, api.url, body_of())
    assert outcome == [1, 2]
    assert broker.failures == []


@pytest.fixture(scope="module")
def strict_process() -> Iterator[ServerProcess]:
    """A server that wants tokens, and three requests a second of each caller."""
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.write_text(SECRET)
        with running(ServerProcess(f"--jwt-secret-file={secret}", "--rate-limit-general=3/1")) as server:
            yield server


def test_a_call_that_comes_too_often_waits_as_long_as_it_is_told(strict_process: ServerProcess) -> None:
    cable = Cable(strict_process.port)
    requests = answering(cable)
    script = (
        BEGIN
        + """
        const given = more[0];
        const anna = new client.LockstepRest(url, { token: given });
        const codes = [];
        for (let i = 0; i < 4; i++) codes.push((await failing(anna.get(body))).code);
        return codes;"""
    )
    outcome = run_js(script, cable.url, str(uuid4()), token("view", sub=str(uuid4())))
    cable.close()
    assert outcome == ["SESSION_NOT_FOUND"] * 4
    assert len(requests) == 5


def test_a_call_does_not_wait_for_longer_than_it_may_take(cable: Cable) -> None:
    said = b'{"error":{"code":"RATE_LIMIT_EXCEEDED","message":"slow down","retry_after_seconds":3600}}'
    requests = answering(
        cable,
        b"HTTP/1.1 429 Too Many\r\nRetry-After: 3600\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said),
        b"HTTP/1.1 503 Away\r\nRetry-After: 3600\r\nContent-Length: 5\r\n\r\nAway!",
    )
    script = BEGIN + "return [await failing(rest.create(body)), await failing(rest.create(body))];"
    outcome = run_js(script, cable.url, body_of())
    assert [(each["code"], each["status"], each["retryAfterMs"]) for each in outcome] == [
        ("RATE_LIMIT_EXCEEDED", 429, 3_600_000),
        ("INVALID_ANSWER", 503, 3_600_000),
    ]
    assert len(requests) == 2


# ---- Nobody, or somebody else, answers ----


def test_a_server_that_is_away_is_unreachable_until_it_is_back(cable: Cable) -> None:
    cable.pull()
    begin = SOON + BEGIN
    away = """
        const hurried = new client.LockstepRest(url, { timeoutMs: 200 });
        const { name, code, status } = await failing(hurried.create(body));
        return [name, code, status ?? null];"""
    assert run_js(begin + away, cable.url, body_of()) == ["LockstepError", "UNREACHABLE", None]
    cable.plug_in()
    requests = answering(cable, CUT, CUT, CUT)
    assert run_js(begin + "return (await rest.create(body)).version;", cable.url, body_of()) == 1
    assert len(requests) == 4


def test_a_line_that_is_dead_without_saying_so_is_given_up_for_another(cable: Cable) -> None:
    requests = answering(cable, b"")
    outcome = run_js(
        SOON
        + BEGIN
        + """
        const { session_id: id } = await new client.LockstepRest(url, { timeoutMs: 4_000 }).create(body);
        const fetch = () => new Promise(() => {});
        const swallowed = new client.LockstepRest(url, { timeoutMs: 100, fetch });
        return [typeof id, (await failing(swallowed.get(id))).code];""",
        cable.url,
        body_of(),
    )
    assert outcome == ["string", "UNREACHABLE"]
    assert len(requests) == 2


def test_what_is_no_answer_of_lockstep_is_an_error_at_once(cable: Cable) -> None:
    junk = [b"", b"null", b"[]", b"{}", b'{"data": 3}', b'{"data": {}, ', b"\xff"]
    answers = [
        HTML % 200,
        HTML % 404,
        b"HTTP/1.1 301 Moved\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n",
        *(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(each), each) for each in junk),
        b'HTTP/1.1 400 Bad\r\nContent-Length: 14\r\n\r\n{"error": "x"}',
    ]
    requests = answering(cable, *answers)
    outcome = run_js(
        BEGIN
        + """
        const codes = [];
        for (let i = 0; i < more[0]; i++) codes.push((await failing(rest.create(body))).code);
        return [codes, (await rest.create(body)).version];""",
        cable.url,
        body_of(),
        len(answers),
    )
    assert outcome == [["INVALID_ANSWER"] * len(answers), 1]
    assert len(requests) == len(answers) + 1


def test_pages_that_never_end_are_an_error() -> None:
    outcome = run_js(
        """
        const answering = (...pages) => {
            const fetch = async () => Response.json({ data: pages.shift() });
            return new client.LockstepRest("http://a.example", { fetch });
        };
        const again = { sessions: [], next_cursor: "1-a" };
        const back = (next_since) => ({ epoch: "x", events: [], next_since });
        const endless = [
            answering(again, again).list(), answering({}).list(), answering(back(3), back(3)).events("x"),
            answering(back(0)).events("x"), answering(back("later")).events("x"), answering({}).events("x"),
        ];
        return Promise.all(endless.map((each) => Array.fromAsync(each).catch(({ code }) => code)));"""
    )
    assert outcome == ["INVALID_ANSWER"] * 6


def test_a_proxy_that_is_alone_for_a_while_is_asked_again(cable: Cable) -> None:
    requests = answering(cable, HTML % 502, HTML % 504)
    script = SOON + BEGIN + "return (await rest.create(body)).version;"
    assert run_js(script, cable.url, body_of()) == 1
    assert len(requests) == 3
    script = (
        BEGIN
        + """
        const fetch = async () => new Response("<html></html>", { status: 502 });
        return failing(new client.LockstepRest(url, { timeoutMs: 300, fetch }).create(body));"""
    )
    outcome = run_js(script, cable.url, body_of())
    assert (outcome["code"], outcome["status"]) == ("INVALID_ANSWER", 502)


# ---- Who asks ----


def test_a_token_is_asked_for_at_each_attempt(strict_process: ServerProcess) -> None:
    cable = Cable(strict_process.port)
    requests = answering(cable, CUT)
    script = (
        SOON
        + BEGIN
        + """
        const tokens = [...more];
        const rest2 = new client.LockstepRest(url, { token: async () => tokens.shift() });
        return [(await rest2.create(body)).version, tokens.length];"""
    )
    outcome = run_js(script, cable.url, body_of(), token(n=1), token(n=2), token(n=3))
    cable.close()
    assert outcome == [1, 1]
    assert (
        len({line for each in requests for line in each.splitlines() if line.lower().startswith(b"auth")})
        == 2
    )


def test_a_token_that_is_not_good_or_not_to_be_had_is_an_error(strict_process: ServerProcess) -> None:
    outcome = run_js(
        BEGIN
        + """
        const outcomes = [];
        const fail = (why) => { throw new Error(why); };
        const functions = [() => fail("no luck"), async () => fail("later"), () => new Promise(() => {})];
        const options = [undefined, "x", more[0], ...functions].map((token) => ({ token }));
        options.at(-1).timeoutMs = 100;
        for (const each of [...options, { token: "two\\nlines" }]) {
            const asking = new client.LockstepRest(url, each);
            const { name, code, status, details, cause } = await failing(asking.get(body));
            outcomes.push([name, code, status ?? null, details?.reason ?? cause ?? null]);
        }
        return outcomes;""",
        strict_process.url,
        str(uuid4()),
        token(ttl_s=-60),
    )
    assert outcome[:5] == [
        ["LockstepError", "UNAUTHORIZED", 401, "missing"],
        ["LockstepError", "UNAUTHORIZED", 401, "malformed"],
        ["LockstepError", "UNAUTHORIZED", 401, "expired"],
        ["LockstepError", "TOKEN_UNAVAILABLE", None, "no luck"],
        ["LockstepError", "TOKEN_UNAVAILABLE", None, "later"],
    ]
    assert [each[:2] for each in outcome[5:]] == [["LockstepError", "UNREACHABLE"], ["TypeError", None]]


@pytest.mark.parametrize(
    ("line", "begin"),
    [
        (lambda cable: None, "controller.abort(new Error('enough'));"),
        (lambda cable: cable.swallow(), "setTimeout(() => controller.abort(new Error('enough')), 50);"),
        (
            lambda cable: answering(cable, *[HTML % 503] * 99),
            "setTimeout(() => controller.abort(new Error('enough')), 50);",
        ),
    ],
    ids=["before", "while it waits for an answer", "between two attempts"],
)
def test_a_call_that_is_aborted_throws_the_reason(
    cable: Cable, line: Callable[[Cable], Any], begin: str
) -> None:
    line(cable)
    script = f"""
        {BEGIN}
        const {{ getEventListeners }} = await import("node:events");
        const controller = new AbortController();
        const {{ signal }} = controller;
        {begin}
        let thrown;
        await rest.create(body, {{ signal }}).catch((error) => (thrown = error));
        return [thrown === signal.reason, getEventListeners(signal, "abort").length];"""
    assert run_js(script, cable.url, body_of()) == [True, 0]
