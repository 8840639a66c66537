"""clients/js in protocol v2: changes, what was missed, commands, tokens."""

import random
import time
import uuid
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from playwright.sync_api import Browser

from tests.support.cable import Cable
from tests.support.processes import ServerProcess, running, wait_until
from tests.support.redis_server import RedisServer
from tests.support.tabs import Tab, older, opened

SECRET = "a secret of more than thirty-two bytes, for tests only"
V1, V2 = "lockstep.v1.json", "lockstep.v2.json"


@pytest.fixture
def tab(browser: Browser, server_process: ServerProcess) -> Iterator[Tab]:
    with opened(browser, server_process.url) as tab:
        yield tab


@pytest.fixture
def cable(server_process: ServerProcess) -> Iterator[Cable]:
    cable = Cable(server_process.port)
    yield cable
    cable.close()


@pytest.fixture
def cut_tab(browser: Browser, cable: Cable) -> Iterator[Tab]:
    """A tab whose cable can be pulled."""
    with opened(browser, cable.url) as tab:
        yield tab


def chess(session_id: str) -> dict[str, Any]:
    participants = [{"participant_id": str(uuid.uuid4()), "total_time_ms": 600_000} for _ in range(2)]
    return {"session_id": session_id, "sync_mode": "per_participant", "participants": participants}


def follow_chess(tab: Tab, options: str = "{}") -> str:
    """A game that has begun, at version 2; `link` follows it, and knows it."""
    session_id = str(uuid.uuid4())
    tab.run(
        f"""await rest("POST", "", args[0]);
        await rest("POST", "/" + args[0].session_id + "/start");
        (await follow({options}, location.origin + "/ws", args[0].session_id)).connect();
        await until(() => link.state && measured());""",
        chess(session_id),
    )
    return session_id


# ---- Which protocol ----


def test_the_newest_protocol_that_both_know_is_spoken(
    browser: Browser, server_process: ServerProcess
) -> None:
    spoken = """(await follow()).connect();
        await until(measured);
        return [sockets.map(({ protocol }) => protocol), sockets[0].url.includes("position")];"""
    with opened(browser, server_process.url) as tab:
        assert tab.run(spoken) == [[V2], False]
    with older(server_process.port) as cable, opened(browser, cable.url) as tab:
        assert tab.run(spoken) == [[V1], False]


def test_a_server_that_names_no_protocol_is_followed_by_v1(
    browser: Browser, server_process: ServerProcess
) -> None:
    with older(server_process.port, names_none=True) as cable, opened(browser, cable.url) as tab:
        follow_chess(tab)
        outcome = tab.run(
            """const opened = () => sockets.filter(({ readyState }) => readyState === WebSocket.OPEN);
            const before = sockets.length;
            opened()[0].close(4000);
            await until(() => sockets.length > before && measured());
            await rest("POST", "/" + link.state.session_id + "/switch");
            await until(() => link.state.version === 3);
            return [sockets.length - before, opened().map(({ protocol }) => protocol), link.position];"""
        )
    assert outcome == [1, [""], None]


@pytest.mark.parametrize("failures", [1, 2])
def test_a_server_that_was_away_at_first_is_not_taken_for_an_old_one(
    cut_tab: Tab, cable: Cable, failures: int
) -> None:
    cut_tab.run("await follow();")
    cable.pull()
    cut_tab.run("link.connect(); await until(() => log.length >= args[0]);", failures)
    cable.plug_in()
    protocol = cut_tab.run("await until(measured); return sockets.at(-1).protocol;")
    assert protocol == V2


# ---- Changes ----

BEFORE = {
    "version": 4,
    "clock": {"kind": "cycle", "remaining_ms": 5, "more": 1},
    "metadata": {"a": 1, "b": {"c": 2}},
    "participants": [{"participant_id": name, "cycle_count": 0, "is_active": name == "a"} for name in "abc"],
}


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"version": 5, "metadata": {"b": {}}}, {"version": 5, "metadata": {"b": {}}}),
        ({"clock": None}, {"clock": None}),
        ({"clock": {"kind": "cycle", "remaining_ms": 4}}, {"clock": {"kind": "cycle", "remaining_ms": 4}}),
        (
            {"participants": [{"participant_id": "b", "is_active": True}, {"participant_id": "d", "x": 1}]},
            {
                "participants": [
                    BEFORE["participants"][0],
                    {"participant_id": "b", "cycle_count": 0, "is_active": True},
                    BEFORE["participants"][2],
                    {"participant_id": "d", "x": 1},
                ]
            },
        ),
        (
            {"participants": [{"participant_id": "a", "removed": True}]},
            {"participants": BEFORE["participants"][1:]},
        ),
        (
            {"participants": [{"participant_id": "a", "removed": True}, {"participant_id": "a", "x": 1}]},
            {"participants": [*BEFORE["participants"][1:], {"participant_id": "a", "x": 1}]},
        ),
    ],
    ids=["fields", "null", "objects", "newcomer", "removed", "come back"],
)
def test_changes_lead_to_the_next_state_and_leave_the_one_before(
    tab: Tab, changes: dict[str, Any], differs: dict[str, Any]
) -> None:
    after, before = tab.run(
        """const { applyChanges } = await import("/client/index.js");
        const freeze = (value) => {
            if (value instanceof Object) Object.values(Object.freeze(value)).forEach(freeze);
        };
        freeze(args);
        return [applyChanges(args[0], args[1]), args[0]];""",
        BEFORE,
        changes,
    )
    assert after == BEFORE | differs
    assert before == BEFORE


def test_what_was_missed_is_heard_once_and_in_order(
    cut_tab: Tab, cable: Cable, server_process: ServerProcess
) -> None:
    session_id = follow_chess(cut_tab)
    url = f"{server_process.url}/v1/sessions/{session_id}"
    request = cut_tab.page.request
    cable.pull()
    cut_tab.run('await until(() => link.status === "offline");')
    position = cut_tab.run("return link.position;")
    for number in range(20):
        request.post(f"{url}/switch", data={"data": {"number": number}})
    cable.plug_in()
    heard, came_by, events, state = cut_tab.run(
        """await until(() => link.state.version === 22 && link.status === "online");
        const states = log.filter(({ event }) => event === "state").slice(1);
        return [states.map(({ sync, state }) => [sync, state.version]), new URL(sockets.at(-1).url).search,
            states.flatMap(({ events }) => events), link.state];"""
    )
    assert heard == [[False, version] for version in range(3, 23)]
    assert f"position={position}" in came_by
    assert [event["data"]["number"] for event in events] == list(range(20))
    assert state == request.get(url).json()["data"]


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
def test_the_state_is_at_each_version_what_rest_shows(tab: Tab, mode: str, seed: int) -> None:
    stored, shown, told = tab.run(
        """const [session, steps] = args, path = "/" + session.session_id, stored = [], shown = {}, told = [];
        await rest("POST", "", session);
        await follow({}, location.origin + "/ws", session.session_id);
        link.addEventListener("state", ({ detail }) => {
            shown[link.position] = detail.state;
            told.push([detail.state.epoch, detail.sync, detail.state.version,
                detail.events?.map(({ version }) => version)]);
        });
        Math.random = () => 0;  // it comes back at once
        link.connect();
        await until(() => link.state);
        const look = async () => {
            const { position, data } = await rest("GET", path);
            stored.push([position, data]);
            return position;
        };
        for (const [number, step] of steps.entries()) {
            if (step === "cut") sockets.at(-1).close(4000);
            else if (step === "anew") {
                await rest("DELETE", path);
                await rest("POST", "", session);
                await rest("POST", path + "/start");
            } else if (number % 2 && link.status === "online") await link.command(...step).catch(() => {});
            else await rest("POST", `${path}/${step[0]}`, step[1]);
            await look();
        }
        const last = await look();
        await until(() => link.position === last);
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


def test_a_connection_that_missed_nothing_shows_no_state_anew(tab: Tab) -> None:
    follow_chess(tab)
    outcome = tab.run(
        """sockets[0].close(4000);
        await until(() => sockets.length === 2 && measured());
        await until(() => received.filter(({ type }) => type === "SUBSCRIBED").length === 2);
        return [received.findLast(({ type }) => type === "SUBSCRIBED").updates,
            log.filter(({ event }) => event === "state").length];"""
    )
    assert outcome == [[], 1]


def test_an_update_from_another_position_is_followed_by_one_sync(tab: Tab) -> None:
    follow_chess(tab)
    outcome = tab.run(
        """const stray = (from) => say(JSON.stringify({ type: "UPDATE", sessionId: link.state.session_id,
            timestamp: 1, from, position: "elsewhere", changes: { version: 99 }, events: [] }));
        stray("somewhere");
        stray("somewhere-else");
        const shown = link.state.version;
        await until(() => log.filter(({ reason }) => reason === "requested").length === 2);
        await rest("POST", "/" + link.state.session_id + "/switch");
        await until(() => link.state.version === 3);
        const stored = await rest("GET", "/" + link.state.session_id);
        return [shown, sent.filter(({ type }) => type === "SYNC").length, log.at(-1).sync,
            [link.position, link.state], [stored.position, stored.data]];"""
    )
    shown, syncs, is_sync, followed, stored = outcome
    assert [shown, syncs, is_sync] == [2, 1, False]
    assert followed == stored


def test_a_session_that_is_deleted_and_created_anew_is_followed_on(tab: Tab) -> None:
    session_id = follow_chess(tab)
    outcome = tab.run(
        """const first = link.state.epoch;
        await rest("DELETE", "/" + args[0].session_id);
        await until(() => link.status === "gone");
        const nothing = [link.state, link.position];
        await rest("POST", "", args[0]);
        await until(() => link.state);
        await rest("POST", "/" + args[0].session_id + "/start");
        await until(() => link.state.version === 2);
        return [nothing, log.slice(-5).map(({ event, status }) => event ?? status), link.state.epoch > first,
            log.slice(-2).map(({ sync }) => sync), sockets.length];""",
        chess(session_id),
    )
    assert outcome == [
        [None, None],
        ["deleted", "gone", "online", "state", "state"],
        True,
        [False, False],
        1,
    ]


def test_a_session_that_was_deleted_meanwhile_is_missing(
    cut_tab: Tab, cable: Cable, server_process: ServerProcess
) -> None:
    session_id = follow_chess(cut_tab)
    cable.pull()
    cut_tab.run('await until(() => link.status === "offline");')
    cut_tab.page.request.delete(f"{server_process.url}/v1/sessions/{session_id}")
    cable.plug_in()
    outcome = cut_tab.run(
        """await until(() => log.some(({ event }) => event === "missing"));
        return [link.state, link.position, link.status];"""
    )
    assert outcome == [None, None, "online"]


MISSES_THREE = """Math.random = () => 100;  // it does not come back before it is told to
    sockets[0].close(4000);
    await until(() => link.status === "offline");
    for (let i = 0; i < 3; i++) await rest("POST", "/" + link.state.session_id + "/switch");
    const versions = [];
    link.addEventListener("state", ({ detail }) => versions.push(detail.state.version));
"""


def test_a_listener_that_closes_is_told_no_more_of_what_came_at_once(tab: Tab) -> None:
    follow_chess(tab)
    outcome = tab.run(
        MISSES_THREE
        + """link.addEventListener("state", () => link.close());
        link.probe();
        await until(() => link.status === "closed");
        return [versions, timers.size];"""
    )
    assert outcome == [[3], 0]


def test_a_listener_that_begins_anew_misses_and_doubles_nothing(tab: Tab) -> None:
    follow_chess(tab)
    versions = tab.run(
        MISSES_THREE
        + """link.addEventListener("state", () => { link.close(); link.connect(); }, { once: true });
        link.probe();
        await until(() => versions.at(-1) === 5 && measured());
        return versions;"""
    )
    assert versions == [3, 4, 5]


def test_a_listener_to_a_deletion_may_close(tab: Tab) -> None:
    follow_chess(tab)
    outcome = tab.run(
        """link.addEventListener("deleted", () => link.close());
        await rest("DELETE", "/" + link.state.session_id);
        await until(() => link.status === "closed");
        return [statuses(), timers.size];"""
    )
    assert outcome == [["online", "closed"], 0]


def test_a_session_that_is_gone_can_be_asked_for_anew(tab: Tab) -> None:
    follow_chess(tab)
    outcome = tab.run(
        """await rest("DELETE", "/" + link.state.session_id);
        await until(() => link.status === "gone");
        link.connect();
        await until(() => log.at(-1).event === "missing");
        return [statuses().slice(1), sockets.length];"""
    )
    assert outcome == [["gone", "connecting", "online"], 2]


# ---- Commands ----


def test_a_command_is_answered_and_its_data_told_with_the_change(tab: Tab) -> None:
    follow_chess(tab)
    result, state, events = tab.run(
        """const result = await link.command("switch", { data: { move: "e4" } });
        await until(() => link.position === result.position);
        return [result, link.state, log.at(-1).events];"""
    )
    assert set(result) == {"position", "timestamp"}
    assert state["version"] == 3
    assert [(event["type"], event["data"]) for event in events] == [("switched", {"move": "e4"})]


def test_commands_are_applied_in_the_order_in_which_they_are_given(tab: Tab) -> None:
    follow_chess(tab)
    outcome = tab.run(
        """const count = (messages, wanted) => messages.filter(({ type }) => type === wanted).length;
        const native = WebSocket.prototype.send;
        let most = 0;
        WebSocket.prototype.send = function (data) {
            native.call(this, data);
            most = Math.max(most, count(sent, "COMMAND") - count(received, "RESULT"));
        };
        const numbers = [...Array(40).keys()];
        const results = await Promise.all(numbers.map((number) => link.command("annotate",
            { metadata: { number }, data: { number } })));
        await until(() => link.state.version === 42);
        const events = log.flatMap(({ events }) => events ?? []);
        const positions = new Set(results.map(({ position }) => position));
        return [positions.size, events.map(({ data }) => data.number), most];"""
    )
    # No more are under way than the server reads at once.
    assert outcome == [40, list(range(40)), 12]


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ('link.command("switch", { expected_version: 1 })', "CONFLICT"),
        ('link.command("resume")', "INVALID_STATE_TRANSITION"),
        ('link.command("adjust", { delta_ms: "x" })', "VALIDATION_ERROR"),
        ('link.command("fly")', "VALIDATION_ERROR"),
        ('link.command("switch", "e4")', "INVALID_MESSAGE"),
        ('link.command("annotate", { metadata: { a: "x".repeat(20_000) } })', "MESSAGE_TOO_BIG"),
    ],
)
def test_a_command_that_is_refused_says_why_and_ends_nothing(tab: Tab, call: str, code: str) -> None:
    follow_chess(tab)
    outcome = tab.run(
        f"""const other = link.command("annotate", {{ metadata: {{}} }});
        const [error, last] = await Promise.all([{call}.catch((error) => error), link.command("switch")]);
        await other;
        await until(() => link.state.version === 4 && measured());
        return [error instanceof Error, error.name, error.code, last.position.split("-")[1]];"""
    )
    assert outcome == [True, "CommandError", code, "4"]


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_a_command_that_is_sent_again_is_applied_once(
    cut_tab: Tab, cable: Cable, server_process: ServerProcess, lost: str
) -> None:
    session_id = follow_chess(cut_tab)
    url = f"{server_process.url}/v1/sessions/{session_id}"
    cable.swallow(requests=lost == "request")
    cut_tab.run('window.answer = link.command("switch", { data: { move: "e4" } });')
    if lost == "answer":
        wait_until(lambda: cut_tab.page.request.get(url).json()["data"]["version"] == 3)
    cable.pull()
    cut_tab.run('await until(() => link.status === "offline");')
    cable.plug_in()
    result, state, events, sent = cut_tab.run(
        """const result = await answer;
        await until(() => link.position === result.position);
        return [result, link.state, log.flatMap(({ events }) => events ?? []),
            sent.filter(({ type }) => type === "COMMAND")];"""
    )
    assert result.get("replayed", False) is (lost == "answer")
    assert len(sent) == 2
    assert sent[0] == sent[1]
    assert [event["data"] for event in events] == [{"move": "e4"}]
    assert state == cut_tab.page.request.get(url).json()["data"]
    assert state["version"] == 3


def test_a_command_and_a_rest_request_of_one_key_are_one(tab: Tab) -> None:
    session_id = follow_chess(tab)
    tab.page.request.post(
        f"{tab.url}/v1/sessions/{session_id}/switch", data={}, headers={"Idempotency-Key": "press-1"}
    )
    replayed, other = tab.run(
        """const again = await link.command("switch", {}, { idempotencyKey: "press-1" });
        const other = await link.command("switch");
        return [again.replayed, other.position.split("-")[1]];"""
    )
    assert (replayed, other) == (True, "4")


def test_a_command_waits_for_the_connection_as_long_as_its_sender_does(tab: Tab) -> None:
    session_id = str(uuid.uuid4())
    outcome = tab.run(
        """await rest("POST", "", args[0]);
        await follow({}, location.origin + "/ws", args[0].session_id);
        const gaveUp = new AbortController();
        const pause = () => link.command("pause", {}, { signal: gaveUp.signal }).catch((reason) => reason);
        const [started, paused] = [link.command("start"), pause()];
        gaveUp.abort("too long");
        link.connect();
        const position = (await started).position.split("-")[1];
        const commands = sent.filter(({ type }) => type === "COMMAND");
        return [position, await paused, await pause(), commands.length];""",
        chess(session_id),
    )
    assert outcome == ["2", "too long", "too long", 1]


def test_a_command_ends_with_the_connection_that_comes_back_no_more(tab: Tab) -> None:
    outcome = tab.run(
        """await follow();
        const waits = link.command("start");
        link.close();
        const late = link.command("start");
        return Promise.all([waits, late].map((each) => each.catch(({ code }) => code)));"""
    )
    assert outcome == ["DISCONNECTED", "DISCONNECTED"]


def test_a_server_without_protocol_v2_is_given_no_commands(
    browser: Browser, server_process: ServerProcess
) -> None:
    with older(server_process.port) as cable, opened(browser, cable.url) as tab:
        outcome = tab.run(
            """await follow();
            const early = link.command("start").catch(({ code }) => code);
            link.connect();
            await until(measured);
            return [await early, await link.command("start").catch(({ code }) => code), link.status];"""
        )
    assert outcome == ["PROTOCOL_V1", "PROTOCOL_V1", "online"]


# ---- A broker that is away ----


def test_state_and_commands_wait_for_a_broker_that_is_away(browser: Browser) -> None:
    redis_server = RedisServer(aof=True)
    try:
        with (
            running(ServerProcess(f"--broker={redis_server.url}")) as server,
            opened(browser, server.url) as tab,
        ):
            session_id = str(uuid.uuid4())
            tab.run("await rest('POST', '', args[0]);", chess(session_id))
            redis_server.kill()
            tab.run(
                """(await follow({}, location.origin + "/ws", args[0])).connect();
                window.answer = link.command("start");
                await until(() => log.some(({ code }) => code === "BROKER_UNAVAILABLE"));""",
                session_id,
            )
            redis_server.start()
            outcome = tab.run(
                """const result = await answer;
                await until(() => link.position === result.position);
                return [link.state.status, link.status];"""
            )
    finally:
        redis_server.close()
    assert outcome == ["running", "online"]


def test_who_finds_a_session_full_comes_back_until_there_is_room(browser: Browser) -> None:
    session_id = str(uuid.uuid4())
    follow = """(await follow({}, location.origin + "/ws", args[0])).connect();"""
    with (
        running(ServerProcess("--max-connections-per-session=1")) as server,
        opened(browser, server.url) as first,
        opened(browser, server.url) as second,
    ):
        first.run("await rest('POST', '', args[1]);" + follow, session_id, chess(session_id))
        first.run("await until(() => link.state);")
        second.run(follow, session_id)
        full = second.run("await until(() => statuses().length > 1); return log.at(-1);")
        first.run("link.close();")
        state = second.run("await until(() => link.state); return link.state;")
    assert (full["status"], full["code"]) == ("offline", 4002)
    assert state["version"] == 1


# ---- A server that sends its clients away ----


def test_who_is_told_when_to_come_back_comes_back_then(tab: Tab) -> None:
    follow_chess(tab)
    outcome = tab.run(
        """say(JSON.stringify({ type: "GOING_AWAY", reconnectAfterMs: 1_234 }));
        const before = [link.status, log.length];
        sockets[0].close(4000);
        await until(() => sockets.length === 2 && measured());
        return [before[0], log[before[1]].status, log[before[1]].retryMs];"""
    )
    assert outcome == ["online", "offline", 1_234]


def test_a_server_that_stops_says_when_to_come_back(browser: Browser) -> None:
    with running(ServerProcess()) as server, opened(browser, server.url) as tab:
        tab.run("(await follow()).connect(); await until(measured);")
        server.terminate()
        outcome = tab.run(
            """await until(() => log.some(({ status }) => status === "offline"));
            const { code, retryMs } = log.find(({ status }) => status === "offline");
            link.close();
            return [code, retryMs, received.find(({ type }) => type === "GOING_AWAY").reconnectAfterMs];"""
        )
    assert outcome[0] == 1001
    assert outcome[1] == outcome[2]


@pytest.mark.parametrize(("code", "closes_as"), [("DISCONNECTED", 4504), ("FORBIDDEN", 4503)])
def test_who_is_unsubscribed_does_not_come_back(tab: Tab, code: str, closes_as: int) -> None:
    follow_chess(tab)
    outcome = tab.run(
        """say(JSON.stringify({ type: "UNSUBSCRIBED", code: args[0], message: "Not any more" }));
        return [link.status, log.at(-1).code, log.at(-1).reason, timers.size];""",
        code,
    )
    assert outcome == ["refused", closes_as, "Not any more", 0]


# ---- Tokens ----


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    secret = tmp_path_factory.mktemp("keys") / "secret"
    secret.write_text(SECRET)
    with running(ServerProcess(f"--jwt-secret-file={secret}")) as server:
        yield server


@pytest.fixture
def guarded_tab(browser: Browser, guarded: ServerProcess) -> Iterator[Tab]:
    with opened(browser, guarded.url) as tab:
        yield tab


TTL_S = 600
# By the time that it is told, the client has its first token for `lastsMs` more; in truth for ten minutes.
AGED = """const [lastsMs, ...tokens] = args;
    const expiresMs = 1000 * JSON.parse(atob(tokens[0].split(".")[1])).exp;
    let aheadMs, asked = 0;
    window.WebSocket = class extends WebSocket {
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
"""


def token(ttl_s: float = TTL_S, sid: str = "*", sub: str | None = "u1", scope: str = "view") -> str:
    claims = {"sid": sid, "scope": scope, "sub": sub, "exp": int(time.time() + ttl_s)}
    return jwt.encode(claims, SECRET, algorithm="HS256")


def test_a_token_is_exchanged_before_it_has_run_out(guarded_tab: Tab) -> None:
    outcome = guarded_tab.run(
        AGED
        + """(await follow({ token: () => tokens[asked++] })).connect();
        await until(() => received.some(({ scope }) => scope === "control"));
        const errors = log.filter(({ event }) => event === "error");
        return [asked, sockets.length, statuses(), errors];""",
        2_000,
        token(),
        token(TTL_S + 2),
        token(TTL_S + 600, scope="control"),
    )
    assert outcome == [3, 1, ["online"], []]


def test_the_same_token_is_not_exchanged_and_another_is_when_there_is_one(guarded_tab: Tab) -> None:
    outcome = guarded_tab.run(
        AGED
        + """(await follow({ token: () => tokens[Number(++asked > 2)] })).connect();
        await until(isExchanged);
        return [asked, sent.filter(({ type }) => type === "REAUTH").length, sockets.length];""",
        4_000,
        token(),
        token(TTL_S + 600),
    )
    assert outcome == [3, 1, 1]


def test_a_token_function_that_fails_then_costs_nothing_while_the_token_lasts(guarded_tab: Tab) -> None:
    outcome = guarded_tab.run(
        AGED
        + """const token = () => {
            if (++asked === 2) throw new Error("offline");
            return tokens[Number(asked > 2)];
        };
        (await follow({ token })).connect();
        await until(isExchanged);
        return [asked, sockets.length, statuses()];""",
        4_000,
        token(),
        token(TTL_S + 600),
    )
    assert outcome == [3, 1, ["online"]]


def test_a_token_of_somebody_else_is_an_error_and_ends_nothing(guarded_tab: Tab) -> None:
    outcome = guarded_tab.run(
        AGED
        + """(await follow({ token: () => tokens[Number(asked++ > 0)] })).connect();
        await until(() => log.some(({ event }) => event === "error"));
        return [log.at(-1).code, statuses(), sockets.length];""",
        2_000,
        token(),
        token(sub="u2"),
    )
    assert outcome == ["UNAUTHORIZED", ["online"], 1]


def test_a_next_token_that_is_not_for_the_session_ends_it(guarded_tab: Tab) -> None:
    outcome = guarded_tab.run(
        AGED
        + """(await follow({ token: () => tokens[Number(asked++ > 0)] })).connect();
        await until(() => link.status === "refused");
        return [log.at(-1).code, timers.size, sockets.length];""",
        2_000,
        token(),
        token(sid=str(uuid.uuid4())),
    )
    assert outcome == [4503, 0, 1]
