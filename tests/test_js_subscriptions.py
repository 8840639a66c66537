"""clients/js: sessions followed over one socket, what was missed, commands, tokens that are exchanged."""

import random
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cable import Cable
from tests.support.processes import ServerProcess, running, wait_until
from tests.support.redis_server import RedisServer
from tests.support.tabs import NodeTab, in_node
from tests.support.tokens import token


@pytest.fixture
def cable(server_process: ServerProcess) -> Iterator[Cable]:
    cable = Cable(server_process.port)
    yield cable
    cable.close()


@pytest.fixture
def cut_node(cable: Cable) -> Iterator[NodeTab]:
    """A Node whose cable can be pulled."""
    with in_node(cable.url) as node:
        yield node


def chess(session_id: str) -> dict[str, Any]:
    participants = [{"participant_id": str(uuid.uuid4()), "total_time_ms": 600_000} for _ in range(2)]
    return {"session_id": session_id, "sync_mode": "per_participant", "participants": participants}


def follow_chess(node: NodeTab) -> str:
    """A game that has begun, at version 2; `session` follows it, and knows it."""
    session_id = str(uuid.uuid4())
    node.run(
        """await rest("POST", "", args[0]);
        await rest("POST", "/" + args[0].session_id + "/start");
        await follow({}, args[0].session_id);
        await until(current);""",
        chess(session_id),
    )
    return session_id


# ---- Many sessions ----


def test_many_sessions_are_followed_over_one_socket(node: NodeTab) -> None:
    """More than the server reads at once."""
    outcome = node.run("""
        const ids = [...Array(60)].map(() => crypto.randomUUID());
        for (const session_id of ids) await rest("POST", "", { session_id, sync_mode: "count_up" });
        await server();
        const sessions = ids.map((id) => subscribe(id));
        await until(() => sessions.every(({ isCurrent }) => isCurrent));
        const position = async (session) => (await session.command("start")).position;
        const positions = await Promise.all(sessions.map(position));
        const isThere = ({ position }, number) => position === positions[number];
        await until(() => sessions.every(isThere));
        Math.random = () => 0;
        drop();
        await until(() => sockets.length === 2 && sessions.every(({ isCurrent }) => isCurrent));
        const asked = sent.filter(({ type }) => type === "SUBSCRIBE").slice(-60);
        return [sessions.map(({ state }) => state.session_id).join() === ids.join(),
            asked.map(({ position }) => position).join() === positions.join(),
            received.filter(({ updates }) => updates?.length === 0).length, logged("state").length];""")
    assert outcome == [True, True, 60, 120]


def test_the_same_subscription_is_given_for_the_same_session_until_it_is_closed(node: NodeTab) -> None:
    session_id = follow_chess(node)
    outcome = node.run(
        """const same = lockstep.subscribe(args[0].toUpperCase());
        session.close();
        const next = lockstep.subscribe(args[0]);
        return [same === session, next === session, session.status, next.sessionId === args[0]];""",
        session_id,
    )
    assert outcome == [True, False, "closed", True]


def test_a_session_that_is_closed_is_told_no_more_and_the_socket_stays(node: NodeTab) -> None:
    session_id = follow_chess(node)
    outcome = node.run(
        """session.close();
        await until(() => received.some(({ type }) => type === "UNSUBSCRIBED"));
        const before = received.length;
        await rest("POST", `/${args[0]}/switch`);
        const other = subscribe(crypto.randomUUID(), "other");
        await until(() => other.status === "missing");
        const late = await session.command("switch").catch(({ code }) => code);
        const told = received.slice(before).filter(({ type }) => type === "UPDATE").length;
        return [logged("state").length, session.status, session.isCurrent, late, sockets.length,
            lockstep.status, told];""",
        session_id,
    )
    assert outcome == [1, "closed", False, "DISCONNECTED", 1, "online", 0]


def test_a_session_that_is_closed_and_followed_again_begins_anew_and_ends_up_right(node: NodeTab) -> None:
    """As React's StrictMode does it, and as quickly."""
    session_id = follow_chess(node)
    outcome = node.run(
        """for (let i = 0; i < 20; i++) {
            session.close();
            session = subscribe(args[0], "round " + i);
        }
        rest("POST", `/${args[0]}/switch`);
        await until(() => session.state?.version === 3 && session.isCurrent);
        await rest("POST", `/${args[0]}/switch`);
        await until(() => session.state.version === 4);
        // Only the last is told anything, and each version at most once.
        const versions = log.filter(({ of, type }) => of === "round 19" && type === "state")
            .flatMap(({ state, sync, events }) => (sync ? [] : events.map(({ version }) => version)));
        const isOther = ({ of, type }) => of.startsWith("round") && of !== "round 19" && type === "state";
        const others = log.filter(isOther);
        const stored = await rest("GET", "/" + args[0]);
        return [new Set(versions).size === versions.length, others.length, sockets.length,
            [session.position, session.state], [stored.position, stored.data]];""",
        session_id,
    )
    is_once, others, sockets, followed, stored = outcome
    assert [is_once, others, sockets] == [True, 0, 1]
    assert followed == stored


def test_a_session_that_is_closed_before_it_was_answered_leaves_nothing(node: NodeTab) -> None:
    outcome = node.run("""
        await server();
        lockstep.connect();
        await until(online);
        const sessions = [...Array(30)].map(() => subscribe());
        for (const session of sessions) session.close();
        const last = subscribe();
        await until(() => last.status === "missing");
        const count = (type) => [...sent, ...received].filter((each) => each.type === type).length;
        await until(() => count("UNSUBSCRIBED") === count("UNSUBSCRIBE"));
        const closed = statuses("session").filter((each) => each === "closed").length;
        return [count("SUBSCRIBE") - count("UNSUBSCRIBE"), closed];
    """)
    # Those that had not been asked for were never asked for.
    assert outcome == [1, 30]


def test_too_many_subscriptions_are_refused_one_by_one_and_the_others_stay() -> None:
    with running(ServerProcess("--max-subscriptions=2")) as server, in_node(server.url) as node:
        outcome = node.run("""
            await server();
            const [first, second, third] = [1, 2, 3].map((number) => subscribe(undefined, String(number)));
            await until(() => third.status === "refused");
            const why = logged("status", "3").at(-1);
            const before = [first, second, third].map(({ status }) => status);
            first.close();
            third.connect();
            await until(() => third.status === "missing");
            return [why.code, before, statuses("3"), lockstep.status];""")
    assert outcome == [
        "TOO_MANY_SUBSCRIPTIONS",
        ["missing", "missing", "refused"],
        ["refused", "waiting", "missing"],
        "online",
    ]


def test_a_session_id_that_is_none_is_refused_and_no_other(node: NodeTab) -> None:
    outcome = node.run("""
        await follow({}, "half-a-link");
        const other = subscribe(undefined, "other");
        await until(() => session.status === "refused" && other.status === "missing");
        return [logged("status")[0].code, lockstep.status];""")
    assert outcome == ["INVALID_MESSAGE", "online"]


def test_a_session_of_another_token_is_refused_and_can_be_asked_for_with_the_right_one(
    guarded_node: NodeTab,
) -> None:
    own, other = str(uuid.uuid4()), str(uuid.uuid4())
    outcome = guarded_node.run(
        """let token = args[0];
        await follow({ token: () => token }, args[2]);
        const own = subscribe(args[3], "own");
        await until(() => session.status === "refused" && own.status === "missing");
        const [{ code, reason }] = logged("status");
        const status = lockstep.status;
        token = args[1];
        Math.random = () => 0;
        drop();
        await until(() => sockets.length === 2 && own.status === "missing");
        const stays = session.status;
        session.connect();
        await until(() => session.status === "missing");
        return [code, reason, status, stays];""",
        token("view", sid=own),
        token("view", sid=[own, other]),
        other,
        own,
    )
    assert outcome == ["FORBIDDEN", "This token is not for this session", "online", "refused"]


# ---- What was missed ----


def test_what_was_missed_is_heard_once_and_in_order(
    cut_node: NodeTab, cable: Cable, server_process: ServerProcess
) -> None:
    session_id = follow_chess(cut_node)
    cable.pull()
    position = cut_node.run('await until(() => lockstep.status === "offline"); return session.position;')
    with in_node(server_process.url) as other:
        other.run(
            """await server();
            const session = subscribe(args[0]);
            for (let number = 0; number < 20; number++) {
                await session.command("switch", { data: { number } });
            }""",
            session_id,
        )
    cable.plug_in()
    heard, asked, numbers, state = cut_node.run(
        """await until(() => session.state.version === 22 && current());
        const states = logged("state").slice(1);
        return [states.map(({ sync, state }) => [sync, state.version]),
            sent.findLast(({ type }) => type === "SUBSCRIBE").position,
            states.flatMap(({ events }) => events).map(({ data }) => data.number), session.state];"""
    )
    assert heard == [[False, version] for version in range(3, 23)]
    assert asked == position
    assert numbers == list(range(20))
    with in_node(server_process.url) as other:
        assert state == other.run('return (await rest("GET", "/" + args[0])).data;', session_id)


def history(mode: str, seed: int) -> tuple[dict[str, Any], list[Any]]:
    """A session, and commands at random, many of them in vain; between them the connection is cut.

    What is due soon makes versions of its own.
    """
    chance = random.Random(seed)
    people = [str(uuid.UUID(int=chance.getrandbits(128), version=4)) for _ in range(6)]
    groups = people[4:]

    def seat(number: int) -> dict[str, Any]:
        own: dict[str, Any] = {"participant_id": people[number]}
        if mode == "per_group":
            own["group_id"] = groups[number % 2]
        if mode == "per_participant" or (mode == "per_group" and number < 2):
            own["total_time_ms"] = chance.choice([1_000, 60_000])
        return own

    participants = [seat(0), seat(1)]
    clock = {"per_cycle": "time_per_cycle_ms", "global": "total_time_ms"}.get(mode)
    session = {
        "session_id": str(uuid.uuid4()),
        "sync_mode": mode,
        "participants": participants,
        "metadata": {"title": "x", "nested": {"a": [1, {"b": None}]}},
        "increment_ms": 1_000,
    } | ({clock: 60_000} if clock else {})

    def body_of(name: str) -> dict[str, Any]:
        if name == "adjust":
            return {"delta_ms": chance.choice([1_000, -1_000, 30_000]), "target": chance.choice(people[:2])}
        if name == "seat":
            return {"participants": [seat(chance.randrange(2, 6))]}
        if name == "unseat":
            return {"participant_id": chance.choice(people)}
        if name == "annotate":
            patch = {"title": chance.choice(["y", None, "z"]), "nested": {"a": None, "c": chance.random()}}
            return {"metadata": patch, "data": {"n": 1}}
        return {"data": {"n": chance.randrange(9)}}

    likely = ["switch"] * 6 + ["pause", "resume"] * 2 + ["adjust", "seat", "unseat", "annotate"] * 2
    steps: list[Any] = [["start", {}]]
    for _ in range(60):
        steps.append("cut" if chance.random() < 0.1 else [(name := chance.choice(likely)), body_of(name)])
    if chance.random() < 0.5:
        steps.insert(chance.randrange(20, 40), "anew")
        steps.append(["complete", {}])
    return session, steps


MODES = ["per_participant", "per_group", "per_cycle", "global", "count_up"]


@pytest.mark.parametrize(
    ("mode", "seed"),
    [
        *[(mode, 1) for mode in MODES],
        *[pytest.param(mode, seed, marks=pytest.mark.long) for mode in MODES for seed in range(2, 42)],
    ],
)
def test_the_state_is_at_each_version_what_rest_shows(node: NodeTab, mode: str, seed: int) -> None:
    stored, shown, told = node.run(
        """const [body, steps] = args, path = "/" + body.session_id, stored = [], shown = {}, told = [];
        await rest("POST", "", body);
        await follow({}, body.session_id);
        session.addEventListener("state", ({ detail }) => {
            shown[session.position] = detail.state;
            told.push([detail.state.epoch, detail.sync, detail.state.version,
                detail.events.map(({ version }) => version)]);
        });
        Math.random = () => 0;  // it comes back at once
        await until(() => session.state);
        const look = async () => {
            const { position, data } = await rest("GET", path);
            stored.push([position, data]);
            return position;
        };
        for (const [number, step] of steps.entries()) {
            if (step === "cut") drop();
            else if (step === "anew") {
                await rest("DELETE", path);
                await rest("POST", "", body);
                await rest("POST", path + "/start");
            } else if (number % 2 && lockstep.status === "online") {
                await session.command(...step).catch(() => {});
            } else await rest("POST", `${path}/${step[0]}`, step[1]);
            await look();
        }
        const last = await look();
        await until(() => last in shown);
        return [stored, shown, told];""",
        *history(mode, seed),
    )
    assert len({position for position, _ in stored}) > 10
    assert [position for position, state in stored if shown.get(position, state) != state] == []
    # Each version of an epoch was told once and in order, from the state with which it began.
    for epoch in dict.fromkeys(epoch for epoch, *_ in told):
        first, *others = [rest for of, *rest in told if of == epoch]
        assert all(not is_sync for is_sync, *_ in others), told
        versions = [version for _, _, events in others for version in events]
        assert versions == list(range(first[1] + 1, others[-1][1] + 1))
        known = {position for position in shown if position.startswith(epoch)}
        # What was committed while it was cut off is not told any more once the session is deleted.
        told_of = range(first[1], others[-1][1] + 1)
        assert known >= {
            position for position, state in stored if state["epoch"] == epoch and state["version"] in told_of
        }


def test_a_connection_that_missed_nothing_shows_no_state_anew(node: NodeTab) -> None:
    follow_chess(node)
    outcome = node.run(
        """drop();
        await until(() => sockets.length === 2 && current());
        return [received.findLast(({ type }) => type === "SUBSCRIBED").updates, logged("state").length,
            statuses("session")];"""
    )
    assert outcome == [[], 1, ["current", "waiting", "current"]]


def test_an_update_from_another_position_is_followed_by_one_question(node: NodeTab) -> None:
    follow_chess(node)
    outcome = node.run(
        """const stray = (from) => say({ type: "UPDATE", sessionId: session.sessionId,
            timestamp: 1, from, position: "elsewhere", changes: { version: 99 }, events: [] });
        stray("somewhere");
        stray("somewhere-else");
        const shown = [session.state.version, session.isCurrent];
        await until(() => session.isCurrent);
        await rest("POST", "/" + session.sessionId + "/switch");
        await until(() => session.state.version === 3);
        const stored = await rest("GET", "/" + session.sessionId);
        return [shown, sent.filter(({ type }) => type === "SUBSCRIBE").length,
            logged("state").map(({ sync }) => sync),
            [session.position, session.state], [stored.position, stored.data]];"""
    )
    shown, asked, syncs, followed, stored = outcome
    assert [shown, asked, syncs] == [[2, False], 2, [True, True, False]]
    assert followed == stored


def test_a_session_that_is_deleted_and_created_anew_is_followed_on(node: NodeTab) -> None:
    session_id = follow_chess(node)
    outcome = node.run(
        """const first = session.state.epoch;
        await rest("DELETE", "/" + args[0].session_id);
        await until(() => session.status === "deleted");
        const nothing = [session.state, session.position, session.isCurrent];
        await rest("POST", "", args[0]);
        await until(() => session.state);
        await rest("POST", "/" + args[0].session_id + "/start");
        await until(() => session.state.version === 2);
        return [nothing, log.slice(-5).map(({ type, status }) => status ?? type), session.state.epoch > first,
            logged("state").slice(-2).map(({ sync }) => sync), sockets.length];""",
        chess(session_id),
    )
    assert outcome == [
        [None, None, False],
        ["deleted", "deleted", "current", "state", "state"],
        True,
        [False, False],
        1,
    ]


def test_a_session_that_was_deleted_meanwhile_is_missing(
    cut_node: NodeTab, cable: Cable, node: NodeTab
) -> None:
    session_id = follow_chess(cut_node)
    cable.pull()
    cut_node.run('await until(() => lockstep.status === "offline");')
    node.run('await server(); await rest("DELETE", "/" + args[0]);', session_id)
    cable.plug_in()
    outcome = cut_node.run(
        """await until(() => logged("missing").length);
        return [session.state, session.position, session.status, lockstep.status];"""
    )
    assert outcome == [None, None, "missing", "online"]


MISSES_THREE = """Math.random = () => 100;  // it does not come back before it is told to
    drop();
    await until(() => lockstep.status === "offline");
    for (let i = 0; i < 3; i++) await rest("POST", "/" + session.sessionId + "/switch");
    const versions = [];
    session.addEventListener("state", ({ detail }) => versions.push(detail.state.version));
"""


@pytest.mark.parametrize("closes", ["lockstep", "session"])
def test_a_listener_that_closes_is_told_no_more_of_what_came_at_once(node: NodeTab, closes: str) -> None:
    follow_chess(node)
    outcome = node.run(
        MISSES_THREE
        + f"""session.addEventListener("state", () => {closes}.close());
        lockstep.probe();
        await until(() => session.status === "closed");
        lockstep.close();
        return [versions, left()];"""
    )
    assert outcome == [[3], [0, 0]]


def test_a_listener_that_begins_anew_misses_and_doubles_nothing(node: NodeTab) -> None:
    follow_chess(node)
    versions = node.run(
        MISSES_THREE
        + """session.addEventListener("state", () => {
            session.close();
            session = subscribe(session.sessionId, "again");
            session.addEventListener("state", ({ detail }) => versions.push(detail.state.version));
        }, { once: true });
        lockstep.probe();
        await until(() => versions.at(-1) === 5 && current());
        return versions;"""
    )
    assert versions == [3, 5]


def test_a_listener_to_a_deletion_may_close(node: NodeTab) -> None:
    follow_chess(node)
    outcome = node.run(
        """session.addEventListener("deleted", () => lockstep.close());
        await rest("DELETE", "/" + session.sessionId);
        await until(() => lockstep.status === "closed");
        return [statuses(), statuses("session"), left()];"""
    )
    assert outcome == [["online", "closed"], ["current", "deleted", "closed"], [0, 0]]


# ---- Commands ----


def test_a_command_is_answered_and_its_data_told_with_the_change(node: NodeTab) -> None:
    follow_chess(node)
    result, state, events = node.run(
        """const result = await session.command("switch", { data: { move: "e4" } });
        await until(() => session.position === result.position);
        return [result, session.state, logged("state").at(-1).events];"""
    )
    assert set(result) == {"position", "timestamp"}
    assert state["version"] == 3
    assert [(event["type"], event["data"]) for event in events] == [("switched", {"move": "e4"})]


def test_commands_are_applied_in_the_order_in_which_they_are_given(node: NodeTab) -> None:
    follow_chess(node)
    outcome = node.run(
        """const count = (messages, wanted) => messages.filter(({ type }) => type === wanted).length;
        const native = sockets[0].send.bind(sockets[0]);
        let most = 0;
        sockets[0].send = (data) => {
            native(data);
            most = Math.max(most, count(sent, "COMMAND") - count(received, "RESULT"));
        };
        const numbers = [...Array(40).keys()];
        const results = await Promise.all(numbers.map((number) => session.command("annotate",
            { metadata: { number }, data: { number } })));
        await until(() => session.state.version === 42);
        const positions = new Set(results.map(({ position }) => position));
        return [positions.size, events().map(({ data }) => data.number), most];"""
    )
    # No more are under way than the server reads at once.
    assert outcome == [40, list(range(40)), 12]


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ('session.command("switch", { expected_version: 1 })', "CONFLICT"),
        ('session.command("resume")', "INVALID_STATE_TRANSITION"),
        ('session.command("adjust", { delta_ms: "x" })', "VALIDATION_ERROR"),
        ('session.command("fly")', "VALIDATION_ERROR"),
        ('session.command("switch", "e4")', "INVALID_MESSAGE"),
        ('session.command("annotate", { metadata: { a: "x".repeat(20_000) } })', "MESSAGE_TOO_BIG"),
    ],
)
def test_a_command_that_is_refused_says_why_and_ends_nothing(node: NodeTab, call: str, code: str) -> None:
    follow_chess(node)
    outcome = node.run(
        f"""const other = session.command("annotate", {{ metadata: {{}} }});
        const [error, last] = await Promise.all([{call}.catch((error) => error), session.command("switch")]);
        await other;
        await until(() => session.state.version === 4 && current());
        return [error instanceof Error, error.name, error.code, last.position.split("-")[1]];"""
    )
    assert outcome == [True, "LockstepError", code, "4"]


def test_what_cannot_be_json_rejects_and_sends_nothing(node: NodeTab) -> None:
    follow_chess(node)
    outcome = node.run(
        """const error = await session.command("switch", { data: { n: 1n } }).catch(({ name }) => name);
        return [error, sent.filter(({ type }) => type === "COMMAND").length];"""
    )
    assert outcome == ["TypeError", 0]


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_a_command_that_is_sent_again_is_applied_once(
    cut_node: NodeTab, node: NodeTab, cable: Cable, lost: str
) -> None:
    session_id = follow_chess(cut_node)
    read = 'return (await rest("GET", "/" + args[0])).data;'
    node.run("await server();")
    cable.swallow(requests=lost == "request")
    cut_node.run('globalThis.answer = session.command("switch", { data: { move: "e4" } });')
    if lost == "answer":
        wait_until(lambda: node.run(read, session_id)["version"] == 3)
    cable.pull()
    cut_node.run('await until(() => lockstep.status === "offline");')
    cable.plug_in()
    result, state, events, sent = cut_node.run(
        """const result = await answer;
        await until(() => session.position === result.position);
        const keys = sent.filter(({ type }) => type === "COMMAND").map(({ id, ...command }) => command);
        return [result, session.state, events(), keys];"""
    )
    assert result.get("replayed", False) is (lost == "answer")
    assert len(sent) == 2
    assert sent[0] == sent[1]
    assert [event["data"] for event in events] == [{"move": "e4"}]
    assert state == node.run(read, session_id)
    assert state["version"] == 3


def test_a_command_and_a_rest_request_of_one_key_are_one(node: NodeTab) -> None:
    follow_chess(node)
    replayed, other = node.run(
        """restHeaders = { "Idempotency-Key": "press-1" };
        await rest("POST", `/${session.sessionId}/switch`, {});
        const again = await session.command("switch", {}, { idempotencyKey: "press-1" });
        const other = await session.command("switch");
        return [again.replayed, other.position.split("-")[1]];"""
    )
    assert (replayed, other) == (True, "4")


def test_a_command_waits_for_the_connection_as_long_as_its_sender_does(node: NodeTab) -> None:
    session_id = str(uuid.uuid4())
    outcome = node.run(
        """await rest("POST", "", args[0]);
        await follow({}, args[0].session_id);
        const gaveUp = new AbortController();
        const heard = [];
        for (const [name, by] of [["addEventListener", 1], ["removeEventListener", -1]]) {
            const native = gaveUp.signal[name].bind(gaveUp.signal);
            gaveUp.signal[name] = (...args) => { heard.push(by); native(...args); };
        }
        const pause = () => session.command("pause", {}, { signal: gaveUp.signal }).catch((reason) => reason);
        const started = session.command("start", {}, { signal: gaveUp.signal });
        const position = (await started).position.split("-")[1];
        await until(online);
        drop();
        await until(() => lockstep.status === "offline");
        const paused = pause();
        gaveUp.abort("too long");
        await until(online);
        const commands = sent.filter(({ type }) => type === "COMMAND");
        return [position, await paused, await pause(), commands.length, heard.reduce((a, b) => a + b)];""",
        chess(session_id),
    )
    assert outcome == ["2", "too long", "too long", 1, 0]


def test_a_command_ends_with_the_connection_that_comes_back_no_more(node: NodeTab) -> None:
    outcome = node.run(
        """await follow();
        const waits = session.command("start");
        lockstep.close();
        const late = session.command("start");
        return Promise.all([waits, late].map((each) => each.catch(({ code }) => code)));"""
    )
    assert outcome == ["DISCONNECTED", "DISCONNECTED"]


def test_a_command_that_was_given_is_sent_although_its_subscription_is_closed(node: NodeTab) -> None:
    follow_chess(node)
    outcome = node.run(
        """const given = session.command("switch");
        session.close();
        return (await given).position.split("-")[1];"""
    )
    assert outcome == "3"


def test_a_session_that_is_busy_holds_up_no_other(node: NodeTab) -> None:
    session_id = follow_chess(node)
    outcome = node.run(
        """await rest("POST", "", { ...args[0], session_id: args[1] });
        const other = subscribe(args[1], "other");
        await until(() => other.isCurrent);
        // The server never hears of the first, which is told to come again in an hour.
        const native = sockets[0].send.bind(sockets[0]);
        sockets[0].send = (data) => {
            const { id, type, sessionId } = JSON.parse(data);
            if (type !== "COMMAND" || sessionId === args[1]) return native(data);
            sent.push(JSON.parse(data));
            queueMicrotask(() => say({ type: "ERROR", id, sessionId, code: "SESSION_BUSY", message: "x",
                retryAfterMs: 3_600_000 }));
        };
        const waits = session.command("switch").catch(({ code }) => code);
        await until(() => sent.some(({ type }) => type === "COMMAND"));
        await turn();
        const behind = session.command("pause").catch(({ code }) => code);
        const { position } = await other.command("start");
        const ofFirst = ({ type, sessionId }) => type === "COMMAND" && sessionId !== args[1];
        const commands = sent.filter(ofFirst).length;
        lockstep.close();
        return [commands, position.split("-")[1], await waits, await behind, left()];""",
        chess(session_id),
        str(uuid.uuid4()),
    )
    assert outcome == [1, "2", "DISCONNECTED", "DISCONNECTED", [0, 0]]


# ---- A broker that is away, a session that is full ----


def test_state_and_commands_wait_for_a_broker_that_is_away() -> None:
    redis_server = RedisServer(aof=True)
    try:
        with running(ServerProcess(f"--broker={redis_server.url}")) as server, in_node(server.url) as node:
            session_id = str(uuid.uuid4())
            node.run("await server(); await rest('POST', '', args[0]);", chess(session_id))
            redis_server.kill()
            node.run(
                """await follow({}, args[0]);
                globalThis.answer = session.command("start");
                const isAway = ({ error }) => error.code === "BROKER_UNAVAILABLE";
                await until(() => logged("error").some(isAway));""",
                session_id,
            )
            redis_server.start()
            outcome = node.run(
                """const result = await answer;
                await until(() => session.position === result.position);
                return [session.state.status, lockstep.status];"""
            )
    finally:
        redis_server.close()
    assert outcome == ["running", "online"]


@pytest.mark.parametrize("is_left", [False, pytest.param(True, marks=pytest.mark.long)])
def test_who_finds_a_session_full_asks_until_there_is_room(is_left: bool) -> None:
    """After five seconds, as the server says."""
    session_id = str(uuid.uuid4())
    with (
        running(ServerProcess("--max-connections-per-session=1")) as server,
        in_node(server.url) as first,
        in_node(server.url) as second,
    ):
        first.run(
            "await rest('POST', '', args[0]); await follow({}, args[0].session_id); await until(current);",
            chess(session_id),
        )
        full = second.run(
            """await follow({}, args[0]);
            const [{ error }] = await until(() => logged("error").length && logged("error"));
            return [error.code, error.retryAfterMs, session.status, lockstep.status];""",
            session_id,
        )
        assert full == ["SESSION_FULL", 5_000, "waiting", "online"]
        if is_left:
            first.run("session.close();")
            assert second.run("await until(current); return session.state.version;") == 1


@pytest.mark.parametrize("code", ["DISCONNECTED", "FORBIDDEN"])
def test_who_is_unsubscribed_does_not_ask_again_before_it_is_told_to(node: NodeTab, code: str) -> None:
    follow_chess(node)
    outcome = node.run(
        """const { sessionId } = session;
        say({ type: "UNSUBSCRIBED", sessionId, code: args[0], message: "Not any more" });
        const { code, reason } = logged("status").at(-1);
        const stopped = [session.status, session.isCurrent, code, reason, lockstep.status];
        session.connect();
        await until(current);
        return [stopped, sockets.length];""",
        code,
    )
    assert outcome == [["refused", False, code, "Not any more", "online"], 1]


def test_who_was_sent_away_stays_so_whatever_it_had_asked_before(node: NodeTab) -> None:
    follow_chess(node)
    outcome = node.run(
        """const { sessionId } = session;
        const have = (type) => received.some((each) => each.type === type);
        received.length = 0;
        say({ type: "UPDATE", sessionId, from: "x", position: "y", timestamp: 1, changes: {}, events: [] });
        const asked = sent.at(-1).type;
        say({ type: "UNSUBSCRIBED", sessionId, code: "DISCONNECTED", message: "Sent away" });
        await until(() => have("SUBSCRIBED"));
        await rest("POST", "/" + sessionId + "/switch");
        await until(() => have("UPDATE"));
        return [asked, session.status, session.isCurrent, session.state.version];"""
    )
    assert outcome == ["SUBSCRIBE", "refused", False, 2]


# ---- Tokens that are exchanged ----

TTL_S = 600
# By the time that it is told, the client has its first token for `lastsMs` more; in truth for ten minutes.
AGED = """const [lastsMs, ...tokens] = args;
    const expiresMs = 1000 * JSON.parse(atob(tokens[0].split(".")[1])).exp;
    let aheadMs, asked = 0;
    globalThis.WebSocket = class extends WebSocket {
        set onmessage(receive) {
            super.onmessage = receive && (({ data }) => {
                const message = JSON.parse(data);
                aheadMs ??= expiresMs - lastsMs - message.timestamp;
                for (const field of ["timestamp", "receivedAt"]) {
                    if (message[field]) message[field] += aheadMs;
                }
                receive({ data: JSON.stringify(message) });
            });
        }
    };
    const isExchanged = () => received.some(({ type }) => type === "REAUTHENTICATED");
    const errors = () => logged("error", "lockstep").map(({ error }) => error.code);
"""


def player(ttl_s: float = TTL_S, scope: str = "view", sub: str = "u1", **claims: Any) -> str:
    return token(scope, ttl_s=ttl_s, sub=sub, **claims)


def test_a_token_is_exchanged_before_it_has_run_out(guarded_node: NodeTab) -> None:
    outcome = guarded_node.run(
        AGED
        + """await follow({ token: () => tokens[asked++] });
        await until(() => received.some(({ scope }) => scope === "control"));
        return [asked, sockets.length, statuses(), errors()];""",
        2_000,
        player(),
        player(TTL_S + 2),
        player(TTL_S + 600, scope="control"),
    )
    assert outcome == [3, 1, ["online"], []]


def test_the_same_token_is_not_exchanged_and_another_is_when_there_is_one(guarded_node: NodeTab) -> None:
    outcome = guarded_node.run(
        AGED
        + """await follow({ token: () => tokens[Number(++asked > 2)] });
        await until(isExchanged);
        return [asked, sent.filter(({ type }) => type === "REAUTH").length, sockets.length];""",
        4_000,
        player(),
        player(TTL_S + 600),
    )
    assert outcome == [3, 1, 1]


@pytest.mark.parametrize("fails", ["throw new Error('offline')", "return 'two words'", "return 5"])
def test_a_token_function_that_fails_then_costs_nothing_while_the_token_lasts(
    guarded_node: NodeTab, fails: str
) -> None:
    outcome = guarded_node.run(
        AGED
        + f"""const token = () => {{
            if (++asked === 2) {fails};
            return tokens[Number(asked > 2)];
        }};
        await follow({{ token }});
        await until(isExchanged);
        return [asked, sockets.length, statuses()];""",
        4_000,
        player(),
        player(TTL_S + 600),
    )
    assert outcome == [3, 1, ["online"]]


def test_a_token_of_somebody_else_is_an_error_and_ends_nothing(guarded_node: NodeTab) -> None:
    outcome = guarded_node.run(
        AGED
        + """await follow({ token: () => tokens[Number(asked++ > 0)] });
        await until(() => errors().length);
        return [errors()[0], statuses(), sockets.length];""",
        2_000,
        player(),
        player(sub="u2"),
    )
    assert outcome == ["UNAUTHORIZED", ["online"], 1]


def test_a_next_token_that_is_not_for_a_session_ends_that_one(guarded_node: NodeTab) -> None:
    kept = str(uuid.uuid4())
    outcome = guarded_node.run(
        AGED
        + """const kept = tokens.pop();
        await follow({ token: () => tokens[Number(asked++ > 0)] });
        const other = subscribe(kept, "kept");
        await until(() => session.status === "refused" && isExchanged());
        return [logged("status").at(-1).code, lockstep.status, other.status, sockets.length];""",
        2_000,
        player(),
        player(sid=kept),
        kept,
    )
    assert outcome == ["FORBIDDEN", "online", "missing", 1]
