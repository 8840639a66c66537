"""clients/js: its connection."""

import asyncio
import json
import socket
from typing import Any

import pytest

from tests.support.cable import Cable
from tests.support.processes import ServerProcess
from tests.support.scripted_socket import WELCOME, Peer, scripted_socket
from tests.support.tabs import NodeTab, in_node, older
from tests.support.tokens import token


async def run_at(url: str, body: str) -> Any:
    """What it returns, in a Node of its own, while the loop of the test goes on."""

    def run() -> Any:
        with in_node(url) as node:
            return node.run(body)

    return await asyncio.to_thread(run)


# ---- Tokens ----


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ("{ token: args[0] }", "online"),
        ("{ token: () => args[0] }", "online"),
        ("{ token: async () => args[0] }", "online"),
        ("{ token: args[0] + 'x' }", "refused"),
        ("{ token: null }", "refused"),
        ("{}", "refused"),
    ],
    ids=["token", "function", "async function", "forged", "null", "none"],
)
def test_who_has_a_token_is_let_in_and_who_has_none_does_not_come_back(
    guarded_node: NodeTab, options: str, status: str
) -> None:
    ended = guarded_node.run(
        f"""await follow({options});
        await until(() => logged("status", "lockstep").length);
        const [{{ code, closeCode }}] = logged("status", "lockstep");
        return [lockstep.status, code, closeCode, sockets.length, session.status === "refused"];""",
        token("view"),
    )
    refused = status == "refused"
    assert ended == [status, "UNAUTHORIZED" if refused else None, 4501 if refused else None, 1, refused]


@pytest.mark.parametrize("kind", ["", "async "])
def test_a_token_function_is_asked_anew_for_each_connection(guarded_node: NodeTab, kind: str) -> None:
    outcome = guarded_node.run(
        f"""let asked = 0;
        await follow({{ token: {kind}() => (asked++, args[0]) }});
        await until(online);
        drop();
        await until(() => statuses().length === 3);
        return [asked, statuses()];""",
        token("view"),
    )
    assert outcome == [2, ["online", "offline", "online"]]


def test_a_token_that_ran_out_is_followed_by_another(guarded_node: NodeTab) -> None:
    asked = guarded_node.run(
        """let asked = 0;
        await follow({ token: async () => args[asked++] ?? args[1] });
        await until(() => log.some(({ code }) => code === "UNAUTHORIZED"));
        await until(online);
        return asked;""",
        token("view", ttl_s=-60),
        token("view"),
    )
    assert asked == 2


@pytest.mark.parametrize("kind", ["none", "expired"])
def test_a_token_function_without_a_good_token_is_asked_again_and_again(
    guarded_node: NodeTab, kind: str
) -> None:
    outcome = guarded_node.run(
        """Math.random = () => 0.01;
        await follow({ token: () => args[0] });
        await until(() => statuses().length >= 3);
        return [lockstep.status, session.status, logged("status", "lockstep").map(({ code }) => code)];""",
        token("view", ttl_s=-60) if kind == "expired" else "",
    )
    assert outcome[:2] == ["offline", "waiting"]
    assert set(outcome[2]) == {"UNAUTHORIZED"}


@pytest.mark.parametrize(
    "fails",
    [
        "() => { throw new Error('no refresh: offline'); }",
        "async () => { throw new Error('no refresh: offline'); }",
        "() => Promise.reject()",
        "() => { throw Symbol('odd'); }",
        "() => { throw Object.create(null); }",
        "() => ({ no: 'string' })",
        "() => ({ then: () => { throw 1; } })",
        "() => 'two words'",
    ],
)
def test_a_token_function_that_fails_costs_one_attempt(guarded_node: NodeTab, fails: str) -> None:
    outcome = guarded_node.run(
        f"""let asked = 0;
        const fails = {fails};
        Math.random = () => 0;
        await follow({{ token: () => (++asked % 2 ? fails() : args[0]) }});
        await until(online);
        drop();
        await until(() => statuses().length === 5);
        const [{{ code, reason, error }}] = logged("status", "lockstep");
        log.length = 0;
        return [asked, code, reason];""",
        token("view"),
    )
    assert outcome == [4, "TOKEN_UNAVAILABLE", "No token"]


@pytest.mark.parametrize("settle", ["resolve(args[0])", "reject(new Error('too late'))"])
def test_to_close_while_a_token_is_awaited_leaves_nothing_behind(guarded_node: NodeTab, settle: str) -> None:
    outcome = guarded_node.run(
        f"""let resolve, reject;
        await follow({{ token: () => new Promise((...both) => ([resolve, reject] = both)) }});
        lockstep.close();
        {settle};
        await turn();
        return [statuses(), statuses("session"), sockets.length, left()];""",
        token("view"),
    )
    assert outcome == [["closed"], ["closed"], 0, [0, 0]]


def test_a_token_function_may_close(guarded_node: NodeTab) -> None:
    outcome = guarded_node.run(
        """await follow({ token: () => { lockstep.close(); return args[0]; } });
        await turn();
        return [statuses(), sockets.length, left()];""",
        token("view"),
    )
    assert outcome == [["closed"], 0, [0, 0]]


@pytest.mark.parametrize("wrong", ["Promise.resolve('x')", "{}", "'Bearer x'", "5"])
def test_what_cannot_be_a_token_is_refused_at_once(node: NodeTab, wrong: str) -> None:
    thrown = node.run(f"return await server({{ token: {wrong} }}).catch(({{ name }}) => name)")
    assert thrown == "TypeError"


# ---- Callbacks ----


def test_listeners_that_throw_do_not_keep_it_from_coming_back(node: NodeTab) -> None:
    node.tolerated = {"of the application"}
    outcome = node.run("""
        await follow();
        const fail = () => { throw new Error("of the application"); };
        for (const type of ["status", "missing"]) session.addEventListener(type, fail);
        lockstep.addEventListener("status", fail);
        await until(() => session.status === "missing");
        drop();
        await until(() => sockets.length === 2 && online() && session.status === "missing");
        return statuses();""")
    assert outcome == ["online", "offline", "online"]


@pytest.mark.parametrize(
    ("of", "status"),
    [
        ("lockstep", "online"),
        ("lockstep", "offline"),
        ("session", "missing"),
        ("session", "waiting"),
    ],
)
def test_a_listener_may_close(node: NodeTab, of: str, status: str) -> None:
    outcome = node.run(
        """await follow();
        const closes = ({ detail }) => detail.status === args[1] && lockstep.close();
        ({ lockstep, session })[args[0]].addEventListener("status", closes);
        await until(() => session.status === "missing" || lockstep.status === "closed");
        if (["offline", "waiting"].includes(args[1])) drop();
        await until(() => lockstep.status === "closed");
        const closed = statuses().filter((each) => each === "closed");
        return [closed, statuses("session").at(-1), sockets.length, left()];""",
        of,
        status,
    )
    assert outcome == [["closed"], "closed", 1, [0, 0]]


def test_what_was_closed_can_be_connected_again_and_follows_anew(node: NodeTab) -> None:
    outcome = node.run("""
        await follow();
        await until(online);
        lockstep.close();
        const again = subscribe(session.sessionId, "again");
        await until(() => again.status === "missing");
        return [statuses(), session.status, again === session];""")
    assert outcome == [["online", "closed", "connecting", "online"], "closed", False]


def test_a_listener_to_the_close_may_follow_anew(node: NodeTab) -> None:
    outcome = node.run("""
        let again;
        await follow();
        await until(() => session.status === "missing");
        lockstep.addEventListener("status", ({ detail }) => {
            if (detail.status === "closed") again ??= subscribe(session.sessionId, "again");
        });
        lockstep.close();
        await until(() => again.status === "missing");
        return [session.status, lockstep.subscriptions.length, sockets.length];""")
    assert outcome == ["closed", 1, 2]


def test_to_close_twice_says_so_once(node: NodeTab) -> None:
    outcome = node.run("""
        await follow();
        lockstep.close();
        lockstep.close();
        session.close();
        session.connect();
        return [statuses(), statuses("session"), left()];""")
    assert outcome == [["closed"], ["closed"], [0, 0]]


@pytest.mark.parametrize("reconnects", [50, pytest.param(1_000, marks=pytest.mark.long)])
def test_connections_that_come_and_go_leave_no_timer_and_no_listener(node: NodeTab, reconnects: int) -> None:
    """Every third is dropped before it stands."""
    outcome = node.run(
        """
        Math.random = () => 0;
        await follow();
        for (let i = 0; i < args[0]; i++) {
            await until(() => sockets.length > i && (i % 3 === 0 || online()));
            drop(4001);
            await until(() => sockets.length > i + 1);
        }
        await until(online);
        const most = timers.size;
        lockstep.close();
        return [most <= 4, left()];""",
        reconnects,
    )
    assert outcome == [True, [0, 0]]


# ---- How it ends, and comes back ----


def test_a_close_of_1000_alone_is_a_lost_connection(node: NodeTab) -> None:
    outcome = node.run("""
        await follow();
        await until(online);
        drop(1000);  // as a proxy may do
        await until(() => statuses().length === 3);
        const { code, closeCode } = logged("status", "lockstep")[1];
        return [statuses(), code, closeCode];""")
    assert outcome == [["online", "offline", "online"], "DISCONNECTED", 1000]


def test_what_is_shown_is_not_current_from_the_loss_to_the_answer(node: NodeTab) -> None:
    outcome = node.run("""
        await follow();
        await rest("POST", "", { session_id: session.sessionId, sync_mode: "count_up" });
        await until(current);
        const seen = [];
        const look = () => seen.push([lockstep.status, session.status, session.isCurrent]);
        session.addEventListener("status", look);
        drop();
        await until(() => seen.length === 2);
        await until(online);
        return [seen, session.state.version, received.filter(({ type }) => type === "SUBSCRIBED").length];""")
    assert outcome == [[["offline", "waiting", False], ["online", "current", True]], 1, 2]


async def test_a_server_of_another_protocol_is_refused() -> None:
    async def script(peer: Peer) -> None:
        await peer.socket.wait_closed()

    async with scripted_socket(script, subprotocol="lockstep.v1.json") as told:
        outcome = await run_at(
            told.url,
            """await follow();
                const waits = session.command("start").catch(({ code }) => code);
                await until(() => lockstep.status === "refused");
                const { code, reason } = logged("status").at(-1);
                return [statuses(), session.status, code, reason, await waits, left(), sockets.length];""",
        )
    assert outcome == [
        ["refused"],
        "refused",
        "UNSUPPORTED_PROTOCOL",
        "This server does not speak protocol v2",
        "DISCONNECTED",
        [0, 0],
        1,
    ]


def test_a_server_that_knows_only_v1_is_refused(server_process: ServerProcess) -> None:
    with older(server_process.port) as cable, in_node(cable.url) as node:
        outcome = node.run(
            """await follow();
            await until(() => lockstep.status === "refused");
            return [sockets[0].protocol, logged("status", "lockstep").map(({ code }) => code), left()];"""
        )
    assert outcome == ["lockstep.v1.json", ["UNSUPPORTED_PROTOCOL"], [0, 0]]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<!doctype html>",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n",
        b"\x00\xff" * 40,
        b"",
    ],
    ids=["html", "502", "302", "junk", "silence"],
)
def test_what_is_no_server_is_tried_again_until_there_is_one(
    server_process: ServerProcess, answer: bytes
) -> None:
    cable = Cable(server_process.port)
    try:
        cable.on_reply(lambda data: answer)
        with in_node(cable.url) as node:
            failed = node.run(
                """Math.random = () => 0.05;
                await follow();
                if (args[0]) await until(() => statuses().length >= 3);
                else await until(() => sockets.length);
                return [[...new Set(statuses())], session.status, session.isCurrent];""",
                bool(answer),
            )
            cable.on_reply(lambda data: data)
            cable.pull()
            cable.plug_in()
            node.run("await until(online); await until(() => session.status === 'missing');")
    finally:
        cable.close()
    assert failed == [["offline"] if answer else [], "waiting", False]


def test_a_server_that_is_away_at_first_is_found_when_it_is_there(server_process: ServerProcess) -> None:
    cable = Cable(server_process.port)
    try:
        with in_node(cable.url) as node:
            cable.pull()
            node.run("await follow(); await until(() => statuses().length >= 2);")
            cable.plug_in()
            node.run("await until(online);")
    finally:
        cable.close()


def test_a_dead_line_is_noticed_by_its_silence_and_given_up(server_process: ServerProcess) -> None:
    cable = Cable(server_process.port)
    try:
        with in_node(cable.url) as node:
            node.run("await follow(); await until(online);")
            cable.swallow()
            why = node.run(
                """lockstep.probe();
                await until(() => lockstep.status === "offline");
                const { code, reason } = logged("status", "lockstep").at(-1);
                return [code, reason, session.status];"""
            )
            cable.pull()
            cable.plug_in()
            node.run("await until(online);")
    finally:
        cable.close()
    assert why == ["DISCONNECTED", "No answer", "waiting"]


def test_a_probe_does_not_wait_to_come_back(node: NodeTab) -> None:
    outcome = node.run("""
        Math.random = () => 100;  // the wait is as long as it can be
        await follow();
        await until(online);
        drop();
        await until(() => lockstep.status === "offline");
        lockstep.probe();
        await until(online);
        return logged("status", "lockstep").find(({ retryMs }) => retryMs).retryMs;""")
    assert outcome == 50_000


# ---- A server that sends its clients away ----


def test_who_is_told_when_to_come_back_comes_back_then(node: NodeTab) -> None:
    outcome = node.run(
        """await follow();
        await until(online);
        say({ type: "GOING_AWAY", reconnectAfterMs: 123 });
        const before = lockstep.status;
        drop();
        await until(() => statuses().length === 3);
        return [before, statuses()[1], logged("status", "lockstep")[1].retryMs];"""
    )
    assert outcome == ["online", "offline", 123]


def test_a_server_that_stops_says_when_to_come_back() -> None:
    server = ServerProcess()
    try:
        with in_node(server.url) as node:
            node.run("await follow(); await until(online);")
            server.terminate()
            outcome = node.run(
                """await until(() => lockstep.status === "offline");
                const { code, retryMs, closeCode } = logged("status", "lockstep")[1];
                const told = received.find(({ type }) => type === "GOING_AWAY").reconnectAfterMs;
                return [code, closeCode, retryMs === told];"""
            )
    finally:
        server.stop()
    assert outcome == ["SHUTTING_DOWN", 1001, True]


# ---- What cannot be understood ----


@pytest.mark.parametrize(
    "junk",
    [
        "",
        "<!doctype html><title>502 Bad Gateway</title>",
        "null",
        "5",
        "[]",
        "{}",
        '{"type":5}',
        '{"type":"SNAPSHOT","state":{"session_id":"',
        '{"type":"PONG","id":PING_ID,"timestamp":5}',
        '{"type":"PONG","id":PING_ID,"timestamp":5,"receivedAt":"soon"}',
        '{"type":"GOING_AWAY","reconnectAfterMs":"soon"}',
        '{"type":"WELCOME"}',
        '{"type":"ERROR","code":5,"message":"x"}',
        '{"type":"UPDATE","sessionId":"another"}',
    ],
)
def test_junk_is_an_event_and_changes_nothing(node: NodeTab, junk: str) -> None:
    outcome = node.run(
        """await follow();
        await until(() => sent.some(({ type }) => type === "PING"));
        say(args[0].replace("PING_ID", sent.findLast(({ type }) => type === "PING").id));
        await until(() => online() && session.status === "missing");
        const errors = logged("error", "lockstep").map(({ error }) => [error instanceof Error, error.code]);
        return [statuses(), session.state, Math.abs(lockstep.time.now() - Date.now()) < 60_000, errors];""",
        junk,
    )
    assert outcome == [["online"], None, True, [[True, "INVALID_ANSWER"]]]


STATE = {"participants": []}


@pytest.mark.parametrize(
    "broken",
    [
        {"type": "SNAPSHOT", "position": "a", "timestamp": 1},
        {"type": "SNAPSHOT", "position": "a", "timestamp": 1, "state": []},
        {"type": "SNAPSHOT", "position": "a", "timestamp": 1, "state": {}},
        {"type": "SNAPSHOT", "position": 5, "timestamp": 1, "state": STATE},
        {"type": "SNAPSHOT", "position": "a", "state": STATE},
        {"type": "UPDATE", "from": "a", "position": "b", "timestamp": 1, "events": []},
        {"type": "UPDATE", "from": "a", "position": "b", "timestamp": 1, "events": [], "changes": []},
        {"type": "UPDATE", "from": "a", "position": "b", "timestamp": 1, "events": [None], "changes": {}},
        {
            "type": "UPDATE",
            "from": "a",
            "position": "b",
            "timestamp": 1,
            "events": [],
            "changes": {"participants": {}},
        },
        {
            "type": "UPDATE",
            "from": "a",
            "position": "b",
            "timestamp": 1,
            "events": [],
            "changes": {"participants": [None]},
        },
        {"type": "UPDATE", "from": None, "position": "b", "timestamp": 1, "events": [], "changes": {}},
        {"type": "UPDATE", "from": "a", "position": "b", "events": [], "changes": {}},
        {"type": "MESSAGE", "message": "x"},
        {"type": "MESSAGE", "message": {}},
        {"type": "PRESENCE", "joined": []},
    ],
    ids=json.dumps,
)
def test_a_broken_message_of_a_session_is_an_event_after_which_it_is_asked_for_anew(
    node: NodeTab, broken: dict[str, Any]
) -> None:
    outcome = node.run(
        """await follow();
        await rest("POST", "", { session_id: session.sessionId, sync_mode: "count_up" });
        await until(() => session.isCurrent);
        const before = session.state;
        say({ ...args[0], sessionId: session.sessionId });
        const after = [session.state === before, session.status, session.isCurrent];
        await until(() => session.isCurrent);
        return [after, logged("error").map(({ error }) => error.code), session.state.version,
            sent.filter(({ type }) => type === "SUBSCRIBE").length, statuses()];""",
        broken,
    )
    assert outcome == [[True, "waiting", False], ["INVALID_ANSWER"], 1, 2, ["online"]]


async def test_answers_that_are_broken_are_asked_for_again_but_not_at_once() -> None:
    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        for _ in range(3):
            request = await peer.hear("SUBSCRIBE")
            await peer.say({"type": "SUBSCRIBED", "id": request["id"], "sessionId": request["sessionId"]})
        await peer.socket.wait_closed()

    async with scripted_socket(script) as told:
        outcome = await run_at(
            told.url,
            """Math.random = () => 0.2;
                await follow();
                await until(() => logged("error").length >= 3);
                const asked = sent.filter(({ type }) => type === "SUBSCRIBE").length;
                const codes = new Set(logged("error").map(({ error }) => error.code));
                return [session.status, session.state, asked, [...codes]];""",
        )
    assert outcome == ["waiting", None, 3, ["INVALID_ANSWER"]]


async def test_an_answer_of_another_kind_ends_a_command_and_has_a_session_asked_for_anew() -> None:
    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        request = await peer.hear("SUBSCRIBE")
        await peer.say({"type": "REAUTHENTICATED", "id": request["id"]})
        await peer.subscribed(None)
        request = await peer.hear("COMMAND")
        await peer.say({"type": "REAUTHENTICATED", "id": request["id"]})
        await peer.socket.wait_closed()

    async with scripted_socket(script) as told:
        outcome = await run_at(
            told.url,
            """Math.random = () => 0.01;
                await follow();
                await until(() => session.status === "missing");
                const code = await session.command("start").catch(({ code }) => code);
                const commands = sent.filter(({ type }) => type === "COMMAND").length;
                return [code, logged("error").map(({ error }) => error.code), commands, sockets.length];""",
        )
    assert outcome == ["INVALID_ANSWER", ["INVALID_ANSWER"], 1, 1]


async def test_a_command_that_was_not_under_way_was_not_what_was_too_big() -> None:
    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        await peer.subscribed(None)
        command = await peer.hear("COMMAND")
        about = {"id": command["id"], "sessionId": command["sessionId"]}
        if peer.number == 1:
            busy = {"code": "SESSION_BUSY", "message": "Busy", "retryAfterMs": 60_000}
            await peer.say({"type": "ERROR", **about, **busy})
            await peer.socket.close(1009)
        else:
            await peer.say({"type": "RESULT", **about, "timestamp": 1, "position": "p"})
            await peer.socket.wait_closed()

    async with scripted_socket(script) as told:
        position = await run_at(
            told.url,
            """Math.random = () => 0.01;
                await follow();
                return (await session.command("start")).position;""",
        )
    assert position == "p"


@pytest.mark.parametrize("name", ["NEWS", "toString", "__proto__", "constructor"])
def test_a_message_of_the_application_is_handed_on(node: NodeTab, name: str) -> None:
    outcome = node.run(
        """await follow();
        await until(() => session.status === "missing");
        const message = { type: args[0], text: "hello" };
        say({ type: args[0] });  // of a later server
        say({ type: "MESSAGE", sessionId: session.sessionId, timestamp: 1, message });
        say('{"type":"PONG","id":1,"timestamp":5,"receivedAt":5,"errorMs":0}');  // nobody asked
        return [lockstep.status, logged("message").map(({ message }) => message),
            log.filter(({ type }) => type === "error").length];""",
        name,
    )
    assert outcome == ["online", [{"type": name, "text": "hello"}], 0]


# ---- A machine that slept, in Node ----


def test_a_sleep_in_which_the_monotonic_clock_stood_still_is_noticed(node: NodeTab) -> None:
    # The server's clock has gone on: what it says from then on is an hour later.
    outcome = node.run("""
        const real = Date.now, HOUR_MS = 3_600_000;
        let sleptMs = 0;
        globalThis.WebSocket = class extends WebSocket {
            set onmessage(hear) {
                super.onmessage = hear && (({ data }) => {
                    const message = JSON.parse(data);
                    for (const field of ["timestamp", "receivedAt"]) {
                        if (message[field]) message[field] += sleptMs;
                    }
                    hear({ data: JSON.stringify(message) });
                });
            }
        };
        await follow();
        await rest("POST", "", { session_id: session.sessionId, sync_mode: "count_up" });
        await until(current);
        Date.now = () => real() + (sleptMs = HOUR_MS);
        const errorMs = lockstep.time.errorMs;  // at once, before any timer
        const seen = [];
        lockstep.addEventListener("status",
            () => seen.push([lockstep.status, String(lockstep.time.errorMs), session.isCurrent]));
        await until(() => seen.length === 2);
        const isRight = Math.abs(lockstep.time.now() - (real() + HOUR_MS)) <= lockstep.time.errorMs + 60_000;
        return [String(errorMs), seen[0], seen[1][0], seen[1][2], lockstep.time.errorMs < 5_000, isRight,
            sockets.length];""")
    assert outcome == ["Infinity", ["unsure", "Infinity", False], "online", True, True, True, 1]


@pytest.mark.parametrize("step_ms", [-86_400_000, 86_400_000])
def test_a_wall_clock_that_is_set_costs_a_measurement_and_no_more(node: NodeTab, step_ms: int) -> None:
    outcome = node.run(
        """const real = Date.now;
        await follow();
        await until(online);
        Date.now = () => real() + args[0];
        await until(() => statuses().length === 3);
        return [statuses(), online(), Math.abs(lockstep.time.now() - real()) < 60_000, sockets.length];""",
        step_ms,
    )
    assert outcome == [["online", "unsure", "online"], True, True, 1]


def test_an_answer_from_before_a_sleep_is_not_believed(node: NodeTab) -> None:
    # It waited in the socket: by the monotonic clock, which stood still, it was quick.
    outcome = node.run(
        """const real = Date.now, sent = [];
        globalThis.WebSocket = class extends WebSocket {
            send(data) {
                sent.push(JSON.parse(data));
                if (sent.at(-1).type !== "PING") super.send(data);
            }
        };
        const pings = () => sent.filter(({ type }) => type === "PING");
        const pong = (id, ms) => say({ type: "PONG", id, timestamp: ms, receivedAt: ms, errorMs: 0 });
        await follow();
        const [ping] = await until(() => pings().length && pings());
        Date.now = () => real() + 3_600_000;
        pong(ping.id, real());
        const errorMs = lockstep.time.errorMs, again = pings().at(-1);
        pong(again.id, real() + 3_600_000);
        const isRight = Math.abs(lockstep.time.now() - Date.now()) < 60_000;
        return [String(errorMs), again.id > ping.id, online(), isRight];"""
    )
    assert outcome == ["Infinity", True, True, True]


def test_a_machine_that_slept_while_it_waited_to_come_back_comes_back_at_once(node: NodeTab) -> None:
    outcome = node.run("""
        const real = Date.now;
        Math.random = () => 100;
        await follow();
        await until(online);
        drop();
        await until(() => lockstep.status === "offline");
        Date.now = () => real() + 3_600_000;
        await until(online);  // within 20 s
        return logged("status", "lockstep").find(({ retryMs }) => retryMs).retryMs;""")
    assert outcome == 50_000


# ---- Addresses, and what runs it ----


@pytest.mark.parametrize(
    ("url", "connects_to"),
    [
        ("http://HOST", "ws://HOST/ws"),
        ("http://HOST/", "ws://HOST/ws"),
        ("ws://HOST/?a=b#c", "ws://HOST/ws"),
        ("http://HOST/clocks", "ws://HOST/clocks/ws"),
        ("http://HOST/clocks/", "ws://HOST/clocks/ws"),
        ("https://HOST/", "wss://HOST/ws"),
        ("wss://HOST", "wss://HOST/ws"),
    ],
)
def test_the_socket_is_below_the_address_of_the_server(node: NodeTab, url: str, connects_to: str) -> None:
    # Nobody listens there: where there is no TLS its greeting is not answered, and Node waits for that.
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{kept.getsockname()[1]}"
        address = node.run(
            "(await server({}, args[0])).connect(); await turn(); lockstep.close(); return sockets[0].url",
            url.replace("HOST", host),
        )
    assert address == connects_to.replace("HOST", host)


@pytest.mark.parametrize("url", ["ftp://example.org/", "http://", "javascript:0", "/relative/to/nothing", ""])
def test_an_address_that_cannot_be_one_is_refused_at_once(node: NodeTab, url: str) -> None:
    assert (
        node.run("return await server({}, args[0]).then(() => null, ({ name }) => name)", url) == "TypeError"
    )


WITHOUT_ITS_OWN = "--no-experimental-websocket"


def test_where_there_is_no_websocket_one_is_handed_in(server_process: ServerProcess) -> None:
    with in_node(server_process.url, WITHOUT_ITS_OWN) as node:
        outcome = node.run("""
            const { default: WebSocket } = await import(new URL("../node_modules/ws/wrapper.mjs", INDEX));
            const none = await server({}).catch(({ name }) => name);
            const made = [];
            class Counted extends WebSocket { constructor(...args) { super(...args); made.push(this); } }
            await follow({ WebSocket: Counted });
            await rest("POST", "", { session_id: session.sessionId, sync_mode: "count_up" });
            const { position } = await session.command("start");
            await until(() => session.position === position && current());
            Math.random = () => 0;
            made[0].terminate();
            await until(() => made.length === 2 && current());
            return [none, session.state.version, statuses()];""")
    assert outcome == ["TypeError", 2, ["online", "offline", "online"]]


def test_a_websocket_that_cannot_be_made_is_tried_again_and_no_missing_token(node: NodeTab) -> None:
    """A browser throws where a page of https: is to connect to ws:."""
    outcome = node.run("""
        Math.random = () => 0.01;
        let made = 0;
        const Refusing = class extends WebSocket {
            constructor(...args) {
                if (made++ === 0) throw new Error("insecure");
                super(...args);
            }
        };
        await server({ WebSocket: Refusing });
        lockstep.connect();
        await until(online);
        const [{ status, code, error }] = logged("status", "lockstep");
        return [status, code, error.message];""")
    assert outcome == ["offline", "DISCONNECTED", "insecure"]


def test_a_websocket_that_is_handed_in_finds_nobody_and_throws_nothing(server_process: ServerProcess) -> None:
    cable = Cable(server_process.port)
    cable.pull()
    try:
        with in_node(cable.url, WITHOUT_ITS_OWN) as node:
            outcome = node.run("""
                const { default: WebSocket } = await import(new URL("../node_modules/ws/wrapper.mjs", INDEX));
                Math.random = () => 0;
                await follow({ WebSocket });
                await until(() => statuses().length > 3);
                lockstep.close();  // also in the middle of an attempt
                await turn();
                return [[...new Set(statuses())], left()];""")
    finally:
        cable.close()
    assert outcome == [["offline", "closed"], [0, 0]]
