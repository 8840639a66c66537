"""clients/js: who is connected, and being sent away."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.processes import ServerProcess
from tests.support.tabs import NodeTab, in_node
from tests.support.tokens import token


@pytest.fixture
def host(guarded_process: ServerProcess) -> Iterator[NodeTab]:
    """The application's back end."""
    with in_node(guarded_process.url) as node:
        node.run('restHeaders = { Authorization: "Bearer " + args[0] };', token())
        yield node


def post(host: NodeTab, path: str, body: dict[str, Any]) -> None:
    assert host.run('return (await rest("POST", args[0], args[1])).status;', path, body) < 300


def a_session(host: NodeTab, **fields: Any) -> str:
    session_id = str(uuid.uuid4())
    body = {"session_id": session_id, "sync_mode": "count_up", "presence": True}
    post(host, "", body | fields)
    return session_id


# Follow the session as this subject; `heard` are the details of each `presence`.
FOLLOW = """const [sessionId, ...tokens] = args;
    await follow({ token: tokens[0] }, sessionId);
    const heard = globalThis.heard = [];
    session.addEventListener("presence", ({ detail }) => heard.push(detail));
    const names = () => session.presence?.present?.map(({ subject }) => subject) ?? null;
    const change = (fields) => say({ type: "PRESENCE", sessionId, anonymous: 0, ...fields });
"""
HERE = FOLLOW + "await until(() => session.presence && current());"


def of(subject: str) -> str:
    return token("view", sub=subject)


def test_who_is_there_is_known_from_the_first_and_who_comes_is_told(
    guarded_node: NodeTab, host: NodeTab
) -> None:
    session_id = a_session(host)
    first, second, own, shown = guarded_node.run(
        HERE
        + """const { Lockstep } = await import(INDEX);
        const another = new Lockstep(ORIGIN, { token: tokens[1] });
        const other = another.subscribe(sessionId);
        await until(() => session.presence.total === 2 && other.presence);
        another.close();
        return [heard[0], heard[1], session.presence === heard[1].presence, other.presence.present];""",
        session_id,
        of("anna"),
        of("bert"),
    )
    anna, bert = shown
    assert first == {"presence": {"present": [anna], "anonymous": 0, "total": 1}}
    assert (anna["subject"], anna["connections"], bert["subject"]) == ("anna", 1, "bert")
    assert second["presence"] == {"present": [anna, bert], "anonymous": 0, "total": 2}
    assert (second["joined"], second["left"], own) == ([bert], [], True)


def test_what_is_told_adds_up_to_who_is_there(guarded_node: NodeTab, host: NodeTab) -> None:
    session_id = a_session(host)
    steps = guarded_node.run(
        HERE
        + """const steps = [];
        const step = (message) => {
            change(message);
            steps.push([names(), session.presence.anonymous, session.presence.total]);
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
def test_a_presence_gone_wrong_changes_nothing_and_is_asked_for_anew(
    guarded_node: NodeTab, host: NodeTab, broken: dict[str, Any]
) -> None:
    outcome = guarded_node.run(
        HERE
        + """const broken = args[2], before = session.presence;
        change(broken);
        const after = [session.presence === before, heard.length, logged("error").at(-1).error.code];
        await until(() => heard.length === 2);
        return [...after, names(), session.isCurrent];""",
        a_session(host),
        of("anna"),
        broken,
    )
    assert outcome == [True, 1, "INVALID_ANSWER", ["anna"], True]


def test_who_comes_back_has_what_is_told_then(guarded_node: NodeTab, host: NodeTab) -> None:
    outcome = guarded_node.run(
        HERE
        + """change({ joined: [{ subject: "ghost", connections: 1, since: "x" }], left: [], total: 2 });
        Math.random = () => 0; // it comes back at once
        let offline;
        lockstep.addEventListener("status", () => { if (lockstep.status === "offline") offline = names(); });
        drop();
        await until(() => current() && heard.length === 3);
        return [offline, names(), "joined" in heard[2]];""",
        a_session(host),
        of("anna"),
    )
    assert outcome == [["anna", "ghost"], ["anna"], False]


def test_a_session_without_presence_has_none(guarded_node: NodeTab, host: NodeTab) -> None:
    outcome = guarded_node.run(
        FOLLOW
        + """await until(current);
        return [session.presence, heard];""",
        a_session(host, presence=False),
        of("anna"),
    )
    assert outcome == [None, []]


def test_presence_ends_with_its_session_and_begins_with_the_next(
    guarded_node: NodeTab, host: NodeTab
) -> None:
    session_id = a_session(host)
    guarded_node.run(HERE, session_id, of("anna"))
    assert host.run('return (await rest("DELETE", "/" + args[0])).status;', session_id) == 204
    gone = guarded_node.run(
        'await until(() => session.status === "deleted"); return [session.presence, heard.at(-1)];'
    )
    a_session(host, session_id=session_id)
    again = guarded_node.run("await until(() => heard.length === 3); return heard[2];")
    assert gone == [None, {"presence": None}]
    assert [each["subject"] for each in again["presence"]["present"]] == ["anna"]
    assert again["joined"] == again["presence"]["present"]


def test_each_session_on_a_socket_has_its_own(guarded_node: NodeTab, host: NodeTab) -> None:
    outcome = guarded_node.run(
        HERE
        + """const other = subscribe(tokens[1], "other");
        await until(() => other.presence);
        session.close();
        const again = subscribe(sessionId, "again");
        await until(() => again.presence);
        return [other.presence.present.map(({ subject, connections }) => [subject, connections]),
            again.presence.present.map(({ subject, connections }) => [subject, connections])];""",
        a_session(host),
        of("anna"),
        a_session(host),
    )
    assert outcome == [[["anna", 1]], [["anna", 1]]]


# ---- Sent away ----


def test_who_is_sent_away_is_told_and_does_not_come_back(guarded_node: NodeTab, host: NodeTab) -> None:
    session_id = a_session(host)
    guarded_node.run(FOLLOW + "await until(current);", session_id, of("anna"))
    post(host, f"/{session_id}/disconnect", {"subject": "bert"})
    post(host, f"/{session_id}/disconnect", {"subject": "anna"})
    outcome = guarded_node.run(
        """await until(() => session.status === "refused");
        const { code, reason } = logged("status").at(-1);
        return [statuses(), statuses("session"), code, reason, sockets.length];"""
    )
    assert outcome == [["online"], ["current", "refused"], "DISCONNECTED", "Disconnected", 1]
