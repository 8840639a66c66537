"""clients/js: who is connected, and being sent away."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.support.processes import ServerProcess, running
from tests.support.tabs import Tab, older, opened
from tests.support.tokens import SECRET, token


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    secret: Path = tmp_path_factory.mktemp("keys") / "secret"
    secret.write_text(SECRET)
    with running(ServerProcess(f"--jwt-secret-file={secret}", "--log-level=warning")) as server:
        yield server


@pytest.fixture
def tab(browser: Browser, guarded: ServerProcess) -> Iterator[Tab]:
    with opened(browser, guarded.url) as tab:
        yield tab


def post(tab: Tab, server: ServerProcess, path: str, body: dict[str, Any]) -> None:
    """As the application's back end."""
    headers = {"Authorization": f"Bearer {token()}"}
    assert tab.page.request.post(f"{server.url}/v1/sessions{path}", data=body, headers=headers).ok


def a_session(tab: Tab, server: ServerProcess, **fields: Any) -> str:
    session_id = str(uuid.uuid4())
    body = {"session_id": session_id, "sync_mode": "count_up", "presence": True}
    post(tab, server, "", body | fields)
    return session_id


# Follow the session as this subject; `heard` are the details of each `presence`.
FOLLOW = """const [sessionId, ...tokens] = args;
    await follow({ token: tokens[0] }, location.origin + "/ws", sessionId);
    const heard = [];
    link.addEventListener("presence", ({ detail }) => heard.push(detail));
    const names = () => link.presence?.present?.map(({ subject }) => subject) ?? null;
    const say_ = (message) => say(JSON.stringify({ type: "PRESENCE", anonymous: 0, ...message }));
    link.connect();
"""
HERE = FOLLOW + "await until(() => link.presence && measured());"


def of(subject: str) -> str:
    return token("view", sub=subject)


def test_who_is_there_is_known_from_the_first_and_who_comes_is_told(tab: Tab, guarded: ServerProcess) -> None:
    session_id = a_session(tab, guarded)
    first, second, own, shown = tab.run(
        HERE
        + """const { Lockstep } = await import("/client/index.js");
        const other = new Lockstep(location.origin + "/ws", sessionId, { token: tokens[1] });
        other.connect();
        await until(() => link.presence.total === 2 && other.presence);
        other.close();
        return [heard[0], heard[1], link.presence === heard[1].presence, other.presence.present];""",
        session_id,
        of("anna"),
        of("bert"),
    )
    anna, bert = shown
    assert first == {"presence": {"present": [anna], "anonymous": 0, "total": 1}}
    assert (anna["subject"], anna["connections"], bert["subject"]) == ("anna", 1, "bert")
    assert second["presence"] == {"present": [anna, bert], "anonymous": 0, "total": 2}
    assert (second["joined"], second["left"], own) == ([bert], [], True)


def test_what_is_told_adds_up_to_who_is_there(tab: Tab, guarded: ServerProcess) -> None:
    session_id = a_session(tab, guarded)
    steps = tab.run(
        HERE
        + """const steps = [];
        const step = (message) => {
            say_(message);
            steps.push([names(), link.presence.anonymous, link.presence.total]);
        };
        const [bert, cleo] = ["bert", "cleo"].map((subject) => ({ subject, connections: 1, since: "x" }));
        step({ joined: [bert, cleo], left: [], total: 3 });
        step({ joined: [], left: [{ subject: "anna" }], anonymous: 2, total: 4 });
        step({ joined: [], left: [{ subject: "nobody" }], total: 2 });
        step({ joined: [cleo], left: [{ subject: "bert" }], total: 1 });
        step({ anonymous: 9, total: 300 });
        step({ anonymous: 8, total: 299 });
        step({ joined: [bert, cleo], left: [], total: 2 });
        return steps;""",
        session_id,
        of("anna"),
    )
    assert steps == [
        [["anna", "bert", "cleo"], 0, 3],
        [["bert", "cleo"], 2, 4],
        [["bert", "cleo"], 0, 2],
        [["cleo"], 0, 1],
        [None, 9, 300],
        [None, 8, 299],
        [["bert", "cleo"], 0, 2],
    ]


@pytest.mark.parametrize(
    "broken",
    [
        {"joined": []},
        {"joined": [], "total": "1"},
        {"joined": [], "total": 1, "anonymous": None},
        {"joined": {}, "total": 1},
        {"joined": ["bert"], "total": 1},
        {"joined": [], "left": [{"subject": 7}], "total": 1},
        {"joined": [None], "left": [], "total": 1},
    ],
    ids=str,
)
def test_a_presence_gone_wrong_changes_nothing_and_is_told(
    tab: Tab, guarded: ServerProcess, broken: dict[str, Any]
) -> None:
    outcome = tab.run(
        HERE
        + """const broken = args[2], before = link.presence;
        say_(broken);
        return [link.presence === before, heard.length, log.at(-1).event, log.at(-1).code];""",
        a_session(tab, guarded),
        of("anna"),
        broken,
    )
    assert outcome == [True, 1, "error", "INVALID_MESSAGE"]


def test_who_comes_back_has_what_is_told_then(tab: Tab, guarded: ServerProcess) -> None:
    outcome = tab.run(
        HERE
        + """say_({ joined: [{ subject: "ghost", connections: 1, since: "x" }], left: [], total: 2 });
        Math.random = () => 0; // it comes back at once
        let offline;
        link.addEventListener("status", () => { if (link.status === "offline") offline = names(); });
        sockets[0].close(4000);
        await until(() => measured() && heard.length === 3);
        return [offline, names(), "joined" in heard[2]];""",
        a_session(tab, guarded),
        of("anna"),
    )
    assert outcome == [["anna", "ghost"], ["anna"], False]


def test_a_session_without_presence_has_none(tab: Tab, guarded: ServerProcess) -> None:
    outcome = tab.run(
        FOLLOW
        + """await until(() => link.state && measured());
        return [link.presence, heard];""",
        a_session(tab, guarded, presence=False),
        of("anna"),
    )
    assert outcome == [None, []]


def test_protocol_v1_tells_nothing_of_it(browser: Browser, guarded: ServerProcess) -> None:
    with older(guarded.port) as cable, opened(browser, cable.url) as tab:
        outcome = tab.run(
            FOLLOW
            + """await until(() => link.state && measured());
            const errors = log.filter(({ event }) => event === "error");
            return [sockets[0].protocol, link.state.presence, link.presence, heard, errors];""",
            a_session(tab, guarded),
            of("anna"),
        )
    assert outcome == ["lockstep.v1.json", True, None, [], []]


def test_presence_ends_with_its_session_and_begins_with_the_next(tab: Tab, guarded: ServerProcess) -> None:
    session_id = a_session(tab, guarded)
    tab.run(HERE + "window.heard = heard;", session_id, of("anna"))
    url = f"{guarded.url}/v1/sessions/{session_id}"
    assert tab.page.request.delete(url, headers={"Authorization": f"Bearer {token()}"}).ok
    gone = tab.run('await until(() => link.status === "gone"); return link.presence;')
    a_session(tab, guarded, session_id=session_id)
    again = tab.run("await until(() => heard.length === 2); return heard[1];")
    assert gone is None
    assert [each["subject"] for each in again["presence"]["present"]] == ["anna"]
    assert again["joined"] == again["presence"]["present"]


# ---- Sent away ----


@pytest.mark.parametrize("protocol", ["lockstep.v2.json", "lockstep.v1.json"])
def test_who_is_sent_away_is_told_and_does_not_come_back(
    browser: Browser, guarded: ServerProcess, protocol: str
) -> None:
    with older(guarded.port) as cable, opened(browser, cable.url if "v1" in protocol else guarded.url) as tab:
        session_id = a_session(tab, guarded)
        tab.run(FOLLOW + "await until(() => link.state && measured());", session_id, of("anna"))
        post(tab, guarded, f"/{session_id}/disconnect", {"subject": "bert"})
        post(tab, guarded, f"/{session_id}/disconnect", {"subject": "anna"})
        outcome = tab.run(
            """await until(() => link.status === "refused");
            const { code, reason } = log.at(-1);
            return [sockets[0].protocol, statuses(), code, reason, timers.size, sockets.length];"""
        )
    assert outcome == [protocol, ["online", "refused"], 4504, "Disconnected", 0, 1]
