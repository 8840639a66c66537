"""clients/js on virtual time, in Node: a test of an application moves it, and its clients know."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api import body_of
from tests.support.cable import Cable
from tests.support.node import SOURCES, run_js
from tests.support.processes import ServerProcess, running
from tests.support.tokens import SECRET, token

BEGIN = f"""
    const {{ advance }} = await import({(SOURCES / "testing.js").as_uri()!r});
    const [url, body, ...more] = args;
    const {{ Lockstep, LockstepRest }} = client;
    const rest = new LockstepRest(url);
    const told = ({{ name, code, status }}) => [name, code, status ?? null];
    const failing = (promise) => promise.then(() => null, told);
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running(ServerProcess("--virtual-time=yes", "--log-level=error")) as server:
        yield server


def chess(minutes: int = 10) -> dict[str, object]:
    return body_of(participants=[{"total_time_ms": minutes * 60_000}] * 2)


def test_a_flag_after_ten_minutes_is_known_to_clients_when_they_have_passed(server: ServerProcess) -> None:
    outcome = run_js(
        BEGIN
        + """
        const { session_id: id } = await rest.create(body);
        const lockstep = new Lockstep(url);
        const session = lockstep.subscribe(id);
        const heard = [];
        session.addEventListener("state", ({ detail: { events } }) => heard.push(...events));
        await advance(url, 1, { clients: [lockstep] });
        const { deadline_ms } = await rest.command(id, "start");
        const almost = await advance(url, 599_999, { clients: [lockstep] });
        const [white] = session.state.participants;
        const before = [white.has_expired, client.remainingMs(session.state, white, lockstep.time.now())];
        const now = await advance(url, 1, { clients: [lockstep] });
        const after = [session.state.participants[0].has_expired, heard.at(-1).type, heard.at(-1).at];
        const late = await advance(url, 90_000, { clients: [lockstep] });
        const over = client.overMs(session.state, lockstep.time.now());
        await new Promise((resolve) => setTimeout(resolve, 20));
        const time = [lockstep.time.now() - late, lockstep.time.errorMs];
        lockstep.close();
        return { before, after: [...after.slice(0, 2), Date.parse(after[2]) - deadline_ms], over, time,
            at: [almost - deadline_ms, now - deadline_ms] };""",
        server.url,
        chess(),
    )
    assert outcome == {
        "before": [False, 1],
        "after": [True, "flagged", 0],
        "over": 90_000,
        "time": [0, 0],
        "at": [-1, 0],
    }


def test_each_change_on_the_way_comes_to_each_client_once_and_in_order(server: ServerProcess) -> None:
    outcome = run_js(
        BEGIN
        + """
        const ids = [];
        for (const each of [body, ...more]) ids.push((await rest.create(each)).session_id);
        const clients = [new Lockstep(url), new Lockstep(url)];
        const heard = clients.map(() => []);
        clients.forEach((each, place) => ids.forEach((id, number) => {
            each.subscribe(id).addEventListener("state", ({ detail: { events, timestamp } }) => {
                for (const { type } of events) heard[place].push([number, type, timestamp]);
            });
        }));
        const began = await advance(url, 1, { clients });
        for (const id of ids) await rest.command(id, "start");
        await advance(url, 36_000, { clients });
        clients.forEach((each) => each.close());
        return heard.map((each) => each.map(([number, type, at]) => [number, type, at - began]));""",
        server.url,
        body_of("per_cycle", time_per_cycle_ms=10_000),
        body_of(participants=[{"total_time_ms": 15_000}] * 2),
    )
    expected = [
        [0, "started", 0],
        [1, "started", 0],
        [0, "advanced", 10_000],
        [1, "flagged", 15_000],
        [0, "advanced", 20_000],
        [0, "advanced", 30_000],
    ]
    assert outcome == [expected, expected]


def test_a_client_that_connects_later_knows_that_time_stands(server: ServerProcess) -> None:
    outcome = run_js(
        BEGIN
        + """
        const now = await advance(url, 86_400_000);
        const lockstep = new Lockstep(url);
        lockstep.connect();
        while (lockstep.time.errorMs > 0) await new Promise((resolve) => setTimeout(resolve, 5));
        const { timestamp_ms } = await rest.time();
        lockstep.close();
        return [lockstep.time.now() - now, timestamp_ms - now];""",
        server.url,
    )
    assert outcome == [0, 0]


def test_time_moves_once_also_where_the_answer_is_lost(server: ServerProcess) -> None:
    cable = Cable(server.port)
    cable.on_reply(lambda reply: None if b"timestamp_ms" in reply else reply)
    outcome = run_js(
        BEGIN
        + """
        const before = await rest.time();
        const error = await failing(advance(more[0], 1_000));
        return [error, (await rest.time()).timestamp_ms - before.timestamp_ms];""",
        server.url,
        None,
        cable.url,
    )
    cable.close()
    assert outcome == [["LockstepError", "UNREACHABLE", None], 1_000]


def test_what_cannot_pass_is_refused(server: ServerProcess, rest_process: ServerProcess) -> None:
    outcome = run_js(
        BEGIN
        + """
        return [
            ...await Promise.all([0, -1, 1.5, 86_400_001, "1", null].map((ms) => failing(advance(url, ms)))),
            await failing(advance(more[0], 1)),
        ];""",
        server.url,
        None,
        rest_process.url,
    )
    assert outcome == [["LockstepError", "VALIDATION_ERROR", 400]] * 6 + [["LockstepError", "NOT_FOUND", 404]]


def test_a_server_with_keys_wants_a_token_of_an_admin(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    with running(ServerProcess("--virtual-time=yes", f"--jwt-secret-file={secret}")) as server:
        outcome = run_js(
            BEGIN
            + """
            const tokens = [undefined, more[0], () => more[1]];
            return Promise.all(tokens.map((token) => failing(advance(url, 1, { token }))));""",
            server.url,
            None,
            token("control"),
            token("admin"),
        )
    assert outcome == [["LockstepError", "UNAUTHORIZED", 401], ["LockstepError", "FORBIDDEN", 403], None]
