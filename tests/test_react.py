"""lockstep-client/react: hooks of a page in Chromium, against a real server."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.support.bundles import bundle
from tests.support.node import run_js
from tests.support.processes import ROOT, ServerProcess
from tests.support.tabs import Tab, opened


@pytest.fixture(scope="module")
def page(browser: Browser, server_process: ServerProcess) -> Iterator[Tab]:
    """A tab with React and the hooks, in which React may complain of nothing."""
    script = bundle(ROOT / "tests/support/react_page.jsx", '--define:process.env.NODE_ENV="development"')
    with opened(browser, server_process.url) as tab:
        complaints: list[str] = []
        tab.page.on(
            "console", lambda said: said.type in ("error", "warning") and complaints.append(said.text)
        )
        tab.page.evaluate(script)
        yield tab
        assert complaints == []


@pytest.fixture
def tab(page: Tab) -> Tab:
    page.run("begin();")
    return page


def create(tab: Tab, body: dict[str, Any] | None = None, *, start: bool = True) -> str:
    """A session, of two who have ten minutes each unless `body` says otherwise."""
    session_id = str(uuid.uuid4())
    participants = [{"participant_id": str(uuid.uuid4()), "total_time_ms": 600_000} for _ in range(2)]
    chess = {"sync_mode": "per_participant", "participants": participants}
    tab.run('await rest("POST", "", args[0])', {"session_id": session_id} | (body or chess))
    if start:
        tab.run('await rest("POST", `/${args[0]}/start`)', session_id)
    return session_id


# ---- useSession ----


def test_every_component_of_a_session_shows_what_a_command_of_one_has_changed(tab: Tab) -> None:
    before, command_is_the_same, after = tab.run(
        """const of = (name) => h(Session, { key: name, name, lockstep, sessionId: args[0] });
        root.render(["one", "other"].map(of));
        await until(() => last("one")?.isCurrent && last("other")?.isCurrent);
        const before = root.host.innerText;
        const { command } = last("one");
        await command("switch");
        await until(() => last("one").state.version === 3 && last("other").state.version === 3);
        return [before, last("one").command === command, root.host.innerText];""",
        create(tab),
    )
    assert (before.split(), after.split(), command_is_the_same) == (["v2", "v2"], ["v3", "v3"], True)


def test_effects_that_run_twice_make_one_subscription_and_leave_none(tab: Tab) -> None:
    session_id = create(tab)
    asked, sockets, statuses, left = tab.run(
        """const timersBefore = timers.size;
        root.render(h(Session, { lockstep, sessionId: args[0], clocks: { clock: {} } }));
        await until(() => last("session")?.isCurrent);
        const { session } = last("session");
        root.unmount();
        await until(() => asked().at(-1)?.[0] === "UNSUBSCRIBE");
        const statuses = [session.status, lockstep.status];
        lockstep.close();
        return [asked(), sockets.length, statuses, [timers.size - timersBefore, frames.due, listeners()]];""",
        session_id,
    )
    assert asked == [["SUBSCRIBE", session_id], ["UNSUBSCRIBE", session_id]]
    assert (sockets, statuses, left) == (1, ["closed", "online"], [0, 0, 0])


def test_what_is_subscribed_to_by_several_is_left_with_the_last_of_them(tab: Tab) -> None:
    session_id = create(tab)
    asked = tab.run(
        """const show = (...names) =>
            root.render(names.map((name) => h(Session, { key: name, name, lockstep, sessionId: args[0] })));
        show("a", "b");
        await until(() => last("b")?.isCurrent);
        show("b", "c"); // one goes, one comes
        await until(() => last("c")?.isCurrent);
        show("d"); // all go, one comes
        await until(() => last("d")?.isCurrent);
        const kept = asked();
        show();
        await until(() => asked().at(-1)?.[0] === "UNSUBSCRIBE");
        return kept;""",
        session_id,
    )
    assert asked == [["SUBSCRIBE", session_id]]


def test_another_component_of_a_known_session_shows_it_at_once(tab: Tab) -> None:
    first = tab.run(
        """root.render(h(Session, { lockstep, sessionId: args[0] }));
        await until(() => last("session")?.isCurrent);
        const other = mount();
        other.render(h(Session, { name: "other", lockstep, sessionId: args[0] }));
        await until(() => told.other);
        return told.other[0].state?.version;""",
        create(tab),
    )
    assert first == 2


def test_another_id_never_shows_the_state_of_the_one_before(tab: Tab) -> None:
    one, other = create(tab), create(tab, start=False)
    pairs, asked = tab.run(
        """const show = (sessionId) => root.render(h(Session, { lockstep, sessionId }));
        const isCurrent = (id) => last("session")?.sessionId === id && last("session").isCurrent;
        const [one, other] = args;
        show(one);
        await until(() => isCurrent(one));
        show(other);
        await until(() => isCurrent(other));
        for (let i = 0; i < 20; i++) {
            show(i % 2 ? one : other);
            if (i % 3 === 0) await Promise.resolve();
            if (i % 4 === 0) await new Promise((done) => setTimeout(done));
        }
        await until(() => isCurrent(one));
        React.startTransition(() => show(null));
        await until(() => last("session").sessionId === null);
        const isLeft = (id) => asked().findLast(([, sessionId]) => sessionId === id)[0] === "UNSUBSCRIBE";
        await until(() => isLeft(one) && isLeft(other));
        const pairs = told.session.map(({ sessionId, state }) => [sessionId, state?.session_id ?? null]);
        return [pairs, asked()];""",
        one,
        other,
    )
    assert {tuple(pair) for pair in pairs} == {
        (one, one),
        (one, None),
        (other, other),
        (other, None),
        (None, None),
    }
    for session_id in (one, other):
        turns = [type_ for type_, of in asked if of == session_id]
        assert turns == ["SUBSCRIBE", "UNSUBSCRIBE"] * (len(turns) // 2)


def test_a_render_that_is_given_up_subscribes_to_nothing(tab: Tab) -> None:
    """React may render and never commit: here beside a component that never stops to wait."""
    asked = tab.run(
        """const never = new Promise(() => {});
        const Waits = () => React.use(never);
        const page = (...children) => h(React.Suspense, { fallback: "waits" }, ...children);
        root.render(page(h(Session, { key: 1, lockstep, sessionId: args[0] }), h(Waits, { key: 2 })));
        await until(() => root.host.innerText === "waits");
        root.render(page(h(Session, { key: 3, name: "shown", lockstep, sessionId: args[1] })));
        await until(() => last("shown")?.isCurrent);
        return asked()""",
        create(tab),
        shown := create(tab),
    )
    assert asked == [["SUBSCRIBE", shown]]


def test_a_session_that_does_not_exist_is_missing_endit_is_made_and_after_it_was_deleted(tab: Tab) -> None:
    session_id = str(uuid.uuid4())
    statuses = tab.run(
        """root.render(h(Session, { lockstep, sessionId: args[0] }));
        await until(() => last("session")?.status === "missing");
        await rest("POST", "", { session_id: args[0], sync_mode: "count_up" });
        await until(() => last("session").state);
        await rest("DELETE", "/" + args[0]);
        await until(() => last("session").status === "deleted" && last("session").state === null);
        return [...new Set(told.session.map(({ status }) => status))];""",
        session_id,
    )
    assert statuses == ["waiting", "missing", "current", "deleted"]


def test_a_session_that_is_refused_says_why_to_every_component(tab: Tab) -> None:
    refused = tab.run(
        """const show = (...names) =>
            root.render(names.map((name) => h(Session, { key: name, name, lockstep, sessionId: "none" })));
        show("first");
        await until(() => last("first")?.status === "refused");
        show("first", "second");
        await until(() => last("second"));
        return ["first", "second"].map((name) => [last(name).status, last(name).code, last(name).state]);"""
    )
    assert refused == [["refused", "INVALID_MESSAGE", None]] * 2


def test_a_command_is_answered_though_its_component_has_gone(tab: Tab) -> None:
    session_id = create(tab)
    version, asked = tab.run(
        """root.render(h(Session, { lockstep, sessionId: args[0] }));
        await until(() => last("session")?.isCurrent);
        const answers = [last("session").command("switch")];
        root.unmount();
        await answers[0];
        await until(() => asked().at(-1)?.[0] === "UNSUBSCRIBE");
        await last("session").command("switch"); // nobody shows the session any more
        await until(() => asked().at(-1)?.[0] === "UNSUBSCRIBE");
        return [(await rest("GET", "/" + args[0])).data.version, asked()];""",
        session_id,
    )
    assert version == 4
    assert asked == [["SUBSCRIBE", session_id], ["UNSUBSCRIBE", session_id]] * 2


def test_a_command_that_is_refused_rejects_with_the_servers_code(tab: Tab) -> None:
    codes = tab.run(
        """root.render(h(Session, { lockstep, sessionId: args[0] }));
        await until(() => last("session")?.isCurrent);
        root.render(h(Session, { name: "none", lockstep, sessionId: null }));
        await until(() => last("none"));
        const codeOf = (answer) => answer.catch((error) => error instanceof LockstepError && error.code);
        const codes = [await codeOf(last("session").command("resume"))];
        return [...codes, await codeOf(last("none").command("switch"))];""",
        create(tab),
    )
    assert codes == ["INVALID_STATE_TRANSITION", "DISCONNECTED"]


def test_what_is_shown_while_offline_is_not_called_current(tab: Tab) -> None:
    session_id = create(tab)
    tab.run(
        """root.render(h(Session, { lockstep, sessionId: args[0] }));
        await until(() => last("session")?.isCurrent);
        sockets[0].dispatchEvent(new CloseEvent("close", { code: 1006 }));
        await until(() => !last("session").isCurrent);
        if (last("session").state.version !== 2) throw new Error("what is known has to stay");
        await rest("POST", `/${args[0]}/switch`);
        await until(() => last("session").isCurrent);""",
        session_id,
    )
    versions = tab.run("return told.session.map(({ state, isCurrent }) => isCurrent && state.version)")
    assert [version for version in dict.fromkeys(versions) if version] == [2, 3]


def test_what_is_shown_is_not_called_current_until_the_time_is_known_again_after_a_sleep(tab: Tab) -> None:
    states = tab.run(
        """root.render(h(Session, { lockstep, sessionId: args[0] }));
        await until(() => last("session")?.isCurrent);
        const [before, wallMs] = [told.session.length - 1, Date.now];
        Date.now = () => wallMs() + 600_000;
        await until(() => told.session.length > before + 1 && last("session").isCurrent);
        Date.now = wallMs;
        return told.session.slice(before).map(({ status, isCurrent }) => [status, isCurrent]);""",
        create(tab),
    )
    assert states == [["current", True], ["current", False], ["current", True]]


def test_a_component_that_was_hidden_does_not_begin_with_what_it_showed(tab: Tab) -> None:
    """React keeps it, but not its subscription, so it may show what was long ago."""
    asked, statuses = tab.run(
        """const { Activity } = React;
        const session = { lockstep, sessionId: args[0], clocks: { clock: {} } };
        const show = (mode) => root.render(h(Activity, { mode }, h(Session, session)));
        show("visible");
        await until(() => last("clock")?.isRunning);
        show("hidden");
        await until(() => asked().at(-1)[0] === "UNSUBSCRIBE" && frames.due === 0);
        const before = told.session.length;
        show("visible");
        await until(() => told.session.length > before && last("session").isCurrent);
        return [asked().map(([type]) => type), told.session.slice(before).map(({ status }) => status)];""",
        create(tab),
    )
    assert asked == ["SUBSCRIBE", "UNSUBSCRIBE", "SUBSCRIBE"]
    assert statuses[0] == "waiting"


# ---- usePresence ----


def test_presence_is_told_to_those_who_ask_for_it_and_renders_nobody_else(
    tab: Tab, browser: Browser, server_process: ServerProcess
) -> None:
    session_id = create(tab, {"sync_mode": "count_up", "presence": True}, start=False)
    tab.run(
        """root.render(h(Session, { lockstep, sessionId: args[0] }, ({ session }) => h(Here, { session })));
        await until(() => last("session")?.isCurrent && last("here")?.total === 1);
        window.before = told.session.length;""",
        session_id,
    )
    with opened(browser, server_process.url) as other:
        other.run(
            """const { Lockstep } = await import("/client/index.js");
            new Lockstep(location.origin).subscribe(args[0]);""",
            session_id,
        )
        shown, renders = tab.run(
            """await until(() => last("here").total === 2);
            return [root.host.innerText, told.session.length - before];"""
        )
    assert (shown, renders) == ("v12", 0)


# ---- useClock ----


def test_a_clock_is_rendered_when_its_text_changes_and_at_no_other_time(tab: Tab) -> None:
    """Without StrictMode, which renders for its own sake."""
    renders, texts, asked, most = tab.run(
        """window.root = mount({ isStrict: false });
        const names = Array.from({ length: 50 }, (_, index) => `c${index}`);
        const clocks = Object.fromEntries(names.map((name) => [name, {}]));
        root.render(h(Session, { lockstep, sessionId: args[0], clocks }));
        await until(() => last("c49")?.isRunning);
        const atFirst = { ...commits };
        const { asked } = frames;
        const before = told.c7.length;
        await until(() => told.c7.length - before >= 2);
        const texts = told.c7.slice(before - 1).map(({ text }) => text);
        return [commits.c7 - atFirst.c7, texts, frames.asked - asked, frames.most];""",
        create(tab),
    )
    assert renders == len(texts) - 1 == len(set(texts)) - 1
    assert asked > renders, "a clock was rendered in each frame"
    assert most == 1, "50 clocks asked for more than one frame at a time"


EVERY_FRAME = """
const { ClockView } = await import(args[0]);
let nowMs = Date.parse("2024-01-01T00:00:00.000Z");
let frame;
globalThis.requestAnimationFrame = (run) => (frame = run);
globalThis.cancelAnimationFrame = () => {};
const one = { participant_id: "a", is_active: true, time_remaining_ms: 30_400, time_used_ms: 1_250 };
const running = { status: "running", participants: [one], active_participant_id: "a", on_timeout: "flag" };
const states = [
    { ...running, sync_mode: "per_participant", clock: { kind: "participant", remaining_ms: 30_400 } },
    { ...running, sync_mode: "count_up", clock: { kind: "elapsed", elapsed_ms: 900 }, lap_elapsed_ms: 450 },
];
const stepsMs = [0.25, 16.75, 133.5, 700];
let seed = 7;
const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
const wrong = [];
let frames = 0, renders = 0, changes = 0;
for (const state of states)
    for (const shows of ["time", "used", "lap", "over"])
        for (const decimals of [0, 1, 2])
            for (const decimalsBelowMs of [Infinity, 20_000, 1_500]) {
                const options = { shows, decimals, decimalsBelowMs };
                const session = Object.assign(new EventTarget(), { time: { now: () => nowMs } });
                session.state = { ...state, cycle_started_at: new Date(nowMs + 3).toISOString() };
                const view = new ClockView(session, options);
                const leave = view.subscribe(() => renders++);
                for (let was = view.face(), i = 0; i < 400; i++, frames++) {
                    nowMs += stepsMs[Math.floor(random() * stepsMs.length)];
                    frame?.();
                    const right = new ClockView(session, options).face();
                    if (view.face().text !== right.text) wrong.push([options, right.text, view.face().text]);
                    if (right.text !== was.text) changes++;
                    was = right;
                }
                leave();
                frame = undefined;
            }
return [wrong.slice(0, 3), frames, renders, changes];
"""


def test_in_every_frame_a_clock_says_what_one_that_is_made_there_and_then_does() -> None:
    clock_view = (ROOT / "clients/js/src/clock-view.js").as_uri()
    wrong, frames, renders, changes = run_js(EVERY_FRAME, clock_view)
    assert wrong == []
    assert changes <= renders < frames / 2


def test_frames_are_asked_for_only_while_a_clock_runs_that_is_seen(tab: Tab) -> None:
    due = tab.run(
        """const due = {};
        const note = async (name) => {
            for (let i = 0; i < 3; i++) await new Promise((done) => setTimeout(done, 20));
            due[name] = frames.due;
        };
        const clocks = { clock: {}, used: { shows: "used" } };
        root.render(h(Session, { lockstep, sessionId: args[0], clocks }));
        await until(() => last("session")?.isCurrent);
        await note("pending");
        await last("session").command("start");
        await until(() => last("clock").isRunning && last("used").isRunning);
        await note("running");
        hide(true);
        await note("hidden");
        hide(false);
        await note("seen");
        await last("session").command("pause");
        await until(() => !last("clock").isRunning && !last("used").isRunning);
        await note("paused");
        await last("session").command("resume");
        await until(() => last("clock").isRunning);
        root.unmount();
        await note("unmounted");
        return due;""",
        create(tab, start=False),
    )
    assert due == {"pending": 0, "running": 1, "hidden": 0, "seen": 1, "paused": 0, "unmounted": 0}


def test_a_clock_that_was_not_seen_is_right_before_the_page_is_painted_again(tab: Tab) -> None:
    before, after = tab.run(
        """root.render(h(Session, { lockstep, sessionId: args[0], clocks: { clock: { decimals: 1 } } }));
        await until(() => last("clock")?.isRunning);
        hide(true);
        await Promise.resolve();
        const before = last("clock").ms;
        const end = performance.now() + 300;
        while (performance.now() < end) await new Promise((done) => setTimeout(done, 50));
        if (last("clock").ms !== before) throw new Error("it was drawn though nobody looked");
        hide(false);
        await Promise.resolve();
        return [before, last("clock").ms];""",
        create(tab),
    )
    assert before - after >= 200


def test_what_a_clock_shows(tab: Tab) -> None:
    """Of a session that stands still, so that all of it is known."""
    a, b = (str(uuid.uuid4()) for _ in range(2))
    participants = [
        {"participant_id": a, "total_time_ms": 600_000},
        {"participant_id": b, "total_time_ms": 9_500},
    ]
    chess = create(tab, {"sync_mode": "per_participant", "participants": participants}, start=False)
    clocks: dict[str, dict[str, Any]] = {
        "of the session": {},
        "of a": {"participantId": a},
        "of b": {"participantId": b},
        "low": {"participantId": b, "decimals": 1, "decimalsBelowMs": 10_000},
        "not low": {"participantId": a, "decimals": 1, "decimalsBelowMs": 10_000},
        "precise": {"participantId": a, "decimals": 2},
        "used": {"participantId": a, "shows": "used"},
        "lap": {"shows": "lap"},
        "over": {"shows": "over"},
        "of nobody": {"participantId": str(uuid.uuid4())},
    }
    shown = tab.run(
        """root.render(h(Session, { lockstep, sessionId: args[0], clocks: args[1] }));
        await until(() => last("session")?.isCurrent);
        return Object.fromEntries(Object.keys(args[1]).map((name) => [name, last(name)]));""",
        chess,
        clocks,
    )
    assert {name: (face["text"], face["ms"]) for name, face in shown.items()} == {
        "of the session": ("10:00", 600_000),
        "of a": ("10:00", 600_000),
        "of b": ("0:10", 10_000),
        "low": ("0:09.5", 9_500),
        "not low": ("10:00", 600_000),
        "precise": ("10:00.00", 600_000),
        "used": ("0:00", 0),
        "lap": ("", None),
        "over": ("0:00", 0),
        "of nobody": ("", None),
    }
    assert not any(face["isRunning"] or face["isOver"] for face in shown.values())


def test_a_clock_that_has_run_out_is_over_and_the_one_of_how_long_it_is_runs(tab: Tab) -> None:
    a, b = (str(uuid.uuid4()) for _ in range(2))
    participants = [{"participant_id": each, "total_time_ms": 1000} for each in (a, b)]
    session_id = create(tab, {"sync_mode": "per_participant", "participants": participants})
    faces = tab.run(
        """const [sessionId, a, b] = args;
        const over = { shows: "over", decimals: 1 };
        const clocks = { a: { participantId: a, decimals: 1 }, b: { participantId: b }, over };
        root.render(h(Session, { lockstep, sessionId, clocks }));
        await until(() => last("a")?.isOver && last("over").ms >= 100);
        return [last("a"), last("b"), last("over").isRunning, told.over.every(({ isOver }) => !isOver)];""",
        session_id,
        a,
        b,
    )
    assert faces[0] == {"text": "0:00.0", "ms": 0, "isRunning": False, "isOver": True}
    assert faces[1] == {"text": "0:01", "ms": 1000, "isRunning": False, "isOver": False}
    assert faces[2:] == [True, True]


# ---- Rendered on a server ----

RENDERED = """
const load = (name) => import(args[0] + name);
const { createElement, StrictMode } = (await load("/node_modules/react/index.js")).default;
const { renderToString } = (await load("/node_modules/react-dom/server.node.js")).default;
const { useClock, usePresence, useSession } = await load("/src/react.js");
const opened = [];
const WebSocket = class { constructor(url) { opened.push(url); } };
const lockstep = new client.Lockstep("https://clocks.example/", { WebSocket });
const Page = () => {
    const { session, state, status, isCurrent } = useSession(lockstep, crypto.randomUUID());
    const face = useClock(session);
    const shown = [state, status, isCurrent, face.text, usePresence(session)];
    return createElement("p", null, JSON.stringify(shown));
};
const html = renderToString(createElement(StrictMode, null, createElement(Page)));
return [html, opened, lockstep.status];
"""


def test_a_page_rendered_on_a_server_opens_no_socket() -> None:
    html, opened_sockets, status = run_js(RENDERED, (ROOT / "clients/js").as_uri())
    assert html == "<p>[null,&quot;waiting&quot;,false,&quot;&quot;,null]</p>"
    assert (opened_sockets, status) == ([], "connecting")


def test_what_a_server_has_rendered_comes_to_life(tab: Tab) -> None:
    shown = tab.run(
        """const host = document.body.appendChild(document.createElement("div"));
        host.innerHTML = '<section id="session"><b>waiting</b><output id="clock"></output></section>';
        const element = h(Session, { lockstep, sessionId: args[0], clocks: { clock: {} } });
        const hydrated = hydrateRoot(host, element);
        await until(() => last("clock")?.isRunning);
        const shown = host.querySelector("b").textContent;
        hydrated.unmount();
        return shown;""",
        create(tab),
    )
    assert shown == "v2"
