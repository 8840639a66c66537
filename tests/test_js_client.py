"""clients/js: its connection, with servers of both protocols."""

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import jwt
import pytest
from playwright.sync_api import Page

from tests.support.browser import chromium
from tests.support.processes import ServerProcess
from tests.support.tabs import Tab, older, opened


@pytest.fixture(scope="module")
def page(server_process: ServerProcess) -> Iterator[Page]:
    with chromium() as browser:
        page = browser.new_page()
        page.goto(server_process.url)
        yield page


SECRET = "a secret of more than thirty-two bytes, for tests only"
OTHER_SESSION = "00000000-0000-4000-8000-000000000001"


@pytest.fixture(params=["v2", pytest.param("v1", marks=pytest.mark.long)])
def spoken(request: pytest.FixtureRequest) -> str:
    """The protocol: v1 with a server that does not know v2."""
    return str(request.param)


either = pytest.mark.parametrize("spoken", ["v2"], indirect=True)
"""Before a protocol is chosen there is nothing to compare."""


@pytest.fixture
def tab(page: Page, server_process: ServerProcess, spoken: str) -> Iterator[Tab]:
    yield from tab_at(page, server_process, spoken)


def tab_at(page: Page, server: ServerProcess, spoken: str) -> Iterator[Tab]:
    assert page.context.browser is not None
    with ExitStack() as stack:
        url = stack.enter_context(older(server.port)).url if spoken == "v1" else server.url
        yield stack.enter_context(opened(page.context.browser, url))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that wants tokens."""
    secret = tmp_path_factory.mktemp("keys") / "secret"
    secret.write_text(SECRET)
    server = ServerProcess(f"--jwt-secret-file={secret}")
    yield server
    server.stop()


@pytest.fixture
def guarded_tab(page: Page, guarded: ServerProcess, spoken: str) -> Iterator[Tab]:
    yield from tab_at(page, guarded, spoken)


def token(sid: str = "*", ttl_s: float = 600) -> str:
    claims = {"sid": sid, "scope": "view", "sub": "u1", "exp": int(time.time() + ttl_s)}
    return jwt.encode(claims, SECRET, algorithm="HS256")


# ---- The connection: tokens ----


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
    guarded_tab: Tab, options: str, status: str
) -> None:
    ended = guarded_tab.run(
        f"""(await follow({options})).connect();
        await until(() => log.length);
        return [link.status, sockets.length];""",
        token(),
    )
    assert ended == [status, 1]


@pytest.mark.parametrize("kind", ["", "async "])
def test_a_token_function_is_asked_anew_for_each_connection(guarded_tab: Tab, kind: str) -> None:
    outcome = guarded_tab.run(
        f"""let asked = 0;
        (await follow({{ token: {kind}() => (asked++, args[0]) }})).connect();
        await until(() => link.status === "online");
        sockets[0].close(4000);
        await until(() => statuses().length === 3);
        return [asked, statuses()];""",
        token(),
    )
    assert outcome == [2, ["online", "offline", "online"]]


def test_a_token_that_ran_out_is_followed_by_another(guarded_tab: Tab) -> None:
    asked = guarded_tab.run(
        """let asked = 0;
        (await follow({ token: async () => args[asked++] ?? args[1] })).connect();
        await until(() => log.some(({ code }) => code === 4501));
        await until(() => link.status === "online");
        return asked;""",
        token(ttl_s=-3),  # with the server's leeway it lasts for two seconds more
        token(),
    )
    assert asked == 2


@pytest.mark.parametrize("kind", ["none", "expired"])
def test_a_token_function_without_a_good_token_is_asked_again_and_again(guarded_tab: Tab, kind: str) -> None:
    codes = guarded_tab.run(
        """(await follow({ token: () => args[0] })).connect();
        await until(() => log.length >= 3);
        return [link.status, ...log.map(({ code }) => code)];""",
        token(ttl_s=-60) if kind == "expired" else "",
    )
    assert codes == ["offline", 4501, 4501, 4501]


def test_a_token_for_another_session_ends_it(guarded_tab: Tab) -> None:
    outcome = guarded_tab.run(
        """let asked = 0;
        (await follow({ token: () => (asked++, args[0]) })).connect();
        await until(() => log.length);
        return [asked, link.status, log[0].code, timers.size];""",
        token(sid=OTHER_SESSION),
    )
    assert outcome == [1, "refused", 4503, 0]


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
def test_a_token_function_that_fails_costs_one_attempt(guarded_tab: Tab, fails: str) -> None:
    outcome = guarded_tab.run(
        f"""let asked = 0;
        const fails = {fails};
        (await follow({{ token: () => (++asked % 2 ? fails() : args[0]) }})).connect();
        await until(() => link.status === "online");
        sockets[0].close(4000);
        await until(() => statuses().length === 5);
        return [asked, statuses(), log[0].reason];""",
        token(),
    )
    assert outcome == [4, ["offline", "online", "offline", "offline", "online"], "No token"]


@either
def test_a_token_that_never_comes_costs_one_attempt(guarded_tab: Tab) -> None:
    guarded_tab.page.clock.install()
    guarded_tab.run(
        """const asked = window.asked = [];
        const token = () => new Promise((resolve) => asked.push(resolve));
        (await follow({ token })).connect();""",
    )
    guarded_tab.page.clock.run_for(2_000)
    assert guarded_tab.run("return [asked.length, log.length]") == [1, 0]
    guarded_tab.page.clock.run_for(8_000)
    assert guarded_tab.run("return log.map(({ status, reason }) => [status, reason])") == [
        ["offline", "No token"]
    ]
    guarded_tab.page.clock.run_for(500)
    outcome = guarded_tab.run(
        """asked[0](args[0]);  // too late, and no longer wanted
        await 0;
        const before = sockets.length;
        asked[1](args[0]);
        await until(() => link.status === "online");
        return [before, sockets.length, asked.length];""",
        token(),
    )
    assert outcome == [0, 1, 2]


@either
@pytest.mark.parametrize("settle", ["resolve(args[0])", "reject(new Error('too late'))"])
def test_to_close_while_a_token_is_awaited_leaves_nothing_behind(guarded_tab: Tab, settle: str) -> None:
    outcome = guarded_tab.run(
        f"""let resolve, reject;
        const token = () => new Promise((...both) => ([resolve, reject] = both));
        (await follow({{ token }})).connect();
        link.close();
        {settle};
        dispatchEvent(new Event("online"));
        await new Promise(requestAnimationFrame);
        return [statuses(), sockets.length, timers.size];""",
        token(),
    )
    assert outcome == [["closed"], 0, 0]


@either
def test_a_token_function_may_close(guarded_tab: Tab) -> None:
    outcome = guarded_tab.run(
        """(await follow({ token: () => { link.close(); return args[0]; } })).connect();
        await new Promise(requestAnimationFrame);
        return [statuses(), sockets.length, timers.size];""",
        token(),
    )
    assert outcome == [["closed"], 0, 0]


@either
@pytest.mark.parametrize("wrong", ["Promise.resolve('x')", "{}", "'Bearer x'"])
def test_what_cannot_be_a_token_is_refused_at_once(tab: Tab, wrong: str) -> None:
    thrown = tab.run(f"return await follow({{ token: {wrong} }}).catch((error) => error.message)")
    assert thrown == "token is neither a JWT nor a function that gives one"


# ---- The connection: callbacks ----


def test_listeners_that_throw_do_not_keep_it_from_coming_back(tab: Tab) -> None:
    tab.tolerated = {"of the application"}  # which hears of them, from the browser
    outcome = tab.run("""
        await follow();
        for (const type of ["status", "missing"]) {
            link.addEventListener(type, () => { throw new Error("of the application"); });
        }
        link.connect();
        await until(measured);
        sockets[0].close(4000);
        await until(() => sockets.length === 2 && measured());
        return statuses();""")
    assert outcome == ["online", "offline", "online"]


@pytest.mark.parametrize("type_", ["online", "offline", "missing"])
def test_a_listener_may_close(tab: Tab, type_: str) -> None:
    outcome = tab.run(
        """await follow();
        for (const type of ["status", "missing"]) {
            link.addEventListener(type, ({ detail }) => (detail.status ?? type) === args[0] && link.close());
        }
        link.connect();
        await until(() => link.status !== "connecting");
        if (args[0] === "offline") sockets[0].close(4000);
        await until(() => link.status === "closed");
        return [statuses().filter((status) => status === "closed"), sockets.length, timers.size];""",
        type_,
    )
    assert outcome == [["closed"], 1, 0]


def test_what_was_closed_can_be_connected_again(tab: Tab) -> None:
    outcome = tab.run("""
        (await follow()).connect();
        await until(measured);
        link.close();
        link.connect();
        await until(measured);
        return statuses();""")
    assert outcome == ["online", "closed", "connecting", "online"]


# ---- The connection: how it ends ----


def test_a_session_that_is_deleted_is_gone(tab: Tab, spoken: str) -> None:
    outcome = tab.run(
        """(await follow({}, location.origin + "/ws", args[0])).connect();
        await until(measured);
        await fetch("/v1/sessions", { method: "POST", headers: { "Content-Type": "application/json" },
            body: JSON.stringify({ session_id: args[0], sync_mode: "count_up", participants: [] }) });
        await until(() => link.state);
        await fetch("/v1/sessions/" + args[0], { method: "DELETE" });
        await until(() => link.status === "gone");
        return [log.map(({ event, status }) => event ?? status), link.state, timers.size === 0];""",
        str(uuid.uuid4()),
    )
    # In protocol v2 the subscription stays: the session may be created anew.
    assert outcome == [["online", "missing", "state", "deleted", "gone"], None, spoken == "v1"]


def test_a_close_of_1000_alone_is_a_lost_connection(tab: Tab) -> None:
    outcome = tab.run("""
        (await follow()).connect();
        await until(measured);
        sockets[0].close(1000);  // as a proxy may do
        await until(() => statuses().length === 3);
        return [statuses(), log.find(({ status }) => status === "offline").code];""")
    assert outcome == [["online", "offline", "online"], 1000]


@pytest.mark.parametrize("spoken", ["v1"], indirect=True)
def test_the_end_of_an_earlier_session_of_the_id_ends_nothing(tab: Tab) -> None:
    outcome = tab.run("""
        (await follow()).connect();
        await until(measured);
        say(JSON.stringify({ type: "STATE_UPDATE", state: { epoch: "0lquvc001aaaa", version: 1 } }));
        say(JSON.stringify({ type: "SESSION_DELETED", epoch: "0lquvc000zzzz", deleted: true }));
        const kept = link.state.version;
        sockets[0].close(1000);
        await until(() => statuses().length === 3);
        return [statuses(), kept];""")
    assert outcome == [["online", "offline", "online"], 1]


def test_a_session_id_that_is_none_is_refused(tab: Tab) -> None:
    outcome = tab.run("""
        (await follow({}, location.origin + "/ws", "half-a-link")).connect();
        await until(() => log.length);
        return [link.status, log[0].code];""")
    assert outcome == ["refused", 1008]


# ---- The connection: what cannot be understood ----


JUNK = {
    "v1": [
        "",
        "<!doctype html><title>502 Bad Gateway</title>",
        '{"type":"STATE_UPDATE","state":{"session_id":"',
        "null",
        "5",
        "[]",
        "{}",
        '{"type":5}',
        '{"type":"STATE_UPDATE"}',
        '{"type":"STATE_UPDATE","state":null}',
        '{"type":"STATE_SYNC","state":"x"}',
        '{"type":"STATE_SYNC","state":[]}',
        '{"type":"PONG","id":PING_ID}',
        '{"type":"PONG","id":PING_ID,"timestamp":"soon"}',
    ],
    "v2": [
        "",
        "5",
        '{"type":5}',
        '{"type":"SNAPSHOT","position":"a"}',
        '{"type":"SNAPSHOT","position":"a","state":[]}',
        '{"type":"SUBSCRIBED"}',
        '{"type":"SUBSCRIBED","position":"a","state":"x"}',
        '{"type":"SUBSCRIBED","updates":{}}',
        '{"type":"SUBSCRIBED","updates":[{"type":"UPDATE"}]}',
        '{"type":"UPDATE","from":"a","position":"b","events":[]}',
        '{"type":"UPDATE","from":"a","position":"b","events":[],"changes":[]}',
        '{"type":"UPDATE","from":"a","position":"b","events":[null],"changes":{}}',
        '{"type":"UPDATE","from":"a","position":"b","events":[],"changes":{"participants":{}}}',
        '{"type":"UPDATE","from":"a","position":"b","events":[],"changes":{"participants":[null]}}',
        '{"type":"UPDATE","from":null,"position":"b","events":[],"changes":{}}',
        '{"type":"MESSAGE","message":"x"}',
        '{"type":"PONG","id":PING_ID,"timestamp":5}',
        '{"type":"PONG","id":PING_ID,"timestamp":5,"receivedAt":"soon"}',
    ],
}


@pytest.mark.parametrize(
    ("spoken", "junk"), [(spoken, junk) for spoken in JUNK for junk in JUNK[spoken]], indirect=["spoken"]
)
def test_junk_is_an_event_and_changes_nothing(tab: Tab, junk: str) -> None:
    outcome = tab.run(
        """const sent = [];
        await follow();
        const native = WebSocket.prototype.send;
        WebSocket.prototype.send = function (data) { sent.push(JSON.parse(data)); native.call(this, data); };
        link.connect();
        await until(() => sent.some(({ type }) => type === "PING"));
        say(args[0].replace("PING_ID", sent.at(-1).id ?? sent.at(-2).id));
        await until(measured);
        return [statuses(), link.state, Math.abs(link.time.now() - Date.now()) < 2_000,
            log.filter(({ event }) => event === "error").map(({ code }) => code)];""",
        junk,
    )
    assert outcome == [["online"], None, True, ["INVALID_MESSAGE"]]


@pytest.mark.parametrize("name", ["NEWS", "toString", "__proto__", "constructor"])
def test_a_message_of_the_application_is_handed_on(tab: Tab, spoken: str, name: str) -> None:
    outcome = tab.run(
        """(await follow()).connect();
        await until(measured);
        const message = { type: args[0], text: "hello" };
        say(JSON.stringify(args[1] === "v1" ? message : { type: "MESSAGE", message }));
        say('{"type":"PONG","id":1,"timestamp":5}');  // nobody asked
        await until(measured);
        const heard = log.filter(({ event, text }) => event === "message" && text === "hello");
        return [link.status, heard.length, Math.abs(link.time.now() - Date.now()) < 2_000];""",
        name,
        spoken,
    )
    assert outcome == ["online", 1, True]


# ---- The connection: a machine that slept ----


def test_a_sleep_in_which_the_monotonic_clock_stood_still_is_noticed(tab: Tab) -> None:
    # The server's clock has gone on: what it says from then on is an hour later.
    outcome = tab.run("""
        const real = Date.now, HOUR_MS = 3_600_000;
        let sleptMs = 0;
        window.WebSocket = class extends WebSocket {
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
        (await follow()).connect();
        await until(measured);
        Date.now = () => real() + (sleptMs = HOUR_MS);
        const errorMs = link.time.errorMs;  // in the very first frame, before any timer
        const seen = [];
        link.addEventListener("status", () => seen.push([link.status, String(link.time.errorMs)]));
        await until(() => seen.length === 2);
        const isRight = Math.abs(link.time.now() - (real() + HOUR_MS)) <= link.time.errorMs + 1_000;
        return [String(errorMs), seen[0], seen[1][0], link.time.errorMs < 5_000, isRight, sockets.length];""")
    assert outcome == ["Infinity", ["unsure", "Infinity"], "online", True, True, 1]


def test_a_sleep_in_which_the_monotonic_clock_ran_on_is_noticed(tab: Tab) -> None:
    tab.page.clock.install()
    tab.run("(await follow()).connect(); await until(measured);")
    tab.page.clock.fast_forward("01:00:00")
    outcome = tab.run("""
        await until(() => statuses().includes("unsure"));
        await until(measured);
        return statuses().slice(0, 2);""")
    assert outcome[:2] == ["online", "unsure"]


@pytest.mark.parametrize("step_ms", [-86_400_000, 86_400_000])
def test_a_wall_clock_that_is_set_costs_a_measurement_and_no_more(tab: Tab, step_ms: int) -> None:
    outcome = tab.run(
        """const real = Date.now;
        (await follow()).connect();
        await until(measured);
        Date.now = () => real() + args[0];
        await until(() => statuses().length === 3);
        return [statuses(), measured(), Math.abs(link.time.now() - real()) < 2_000, sockets.length];""",
        step_ms,
    )
    assert outcome == [["online", "unsure", "online"], True, True, 1]


def test_an_answer_from_before_a_sleep_is_not_believed(tab: Tab, spoken: str) -> None:
    # It waited in the socket: by the monotonic clock, which stood still, it was quick.
    outcome = tab.run(
        """const real = Date.now, native = WebSocket.prototype.send, sent = [];
        WebSocket.prototype.send = function (data) {
            const message = JSON.parse(data);
            sent.push(message);
            if (message.type !== "PING") native.call(this, data);
        };
        const pong = (id, ms) => {
            const more = args[0] === "v2" ? { receivedAt: ms, errorMs: 0 } : {};
            say(JSON.stringify({ type: "PONG", id, timestamp: ms, ...more }));
        };
        (await follow()).connect();
        await until(() => sent.some(({ type }) => type === "PING"));
        const ping = sent.find(({ type }) => type === "PING");
        Date.now = () => real() + 3_600_000;
        pong(ping.id, real());
        const errorMs = link.time.errorMs, again = sent.at(-1);
        pong(again.id, real() + 3_600_000);
        const isRight = Math.abs(link.time.now() - Date.now()) < 2_000;
        return [String(errorMs), again.type, again.id > ping.id, measured(), isRight];""",
        spoken,
    )
    assert outcome == ["Infinity", "PING", True, True, True]


def test_a_machine_that_slept_while_it_waited_to_come_back_comes_back_at_once(tab: Tab) -> None:
    outcome = tab.run("""
        const real = Date.now;
        Math.random = () => 100;  // the wait is as long as it can be
        (await follow()).connect();
        await until(measured);
        sockets[0].close(4000);
        await until(() => link.status === "offline");
        Date.now = () => real() + 3_600_000;
        await until(measured);  // within 20 s
        return log.find(({ status }) => status === "offline").retryMs;""")
    assert outcome == 50_000


# ---- The connection: addresses ----


@either
@pytest.mark.parametrize(
    ("url", "connects_to"),
    [
        ("/ws", "ws://HOST/ws?sessionId=ID"),
        ("ws", "ws://HOST/ws?sessionId=ID"),
        ("./ws?a=b#c", "ws://HOST/ws?a=b&sessionId=ID"),
        ("//HOST/ws", "ws://HOST/ws?sessionId=ID"),
        ("http://HOST/ws", "ws://HOST/ws?sessionId=ID"),
        ("ws://HOST/ws", "ws://HOST/ws?sessionId=ID"),
        ("https://HOST/ws", "wss://HOST/ws?sessionId=ID"),
        ("wss://HOST/ws", "wss://HOST/ws?sessionId=ID"),
    ],
)
def test_an_address_is_relative_to_the_page_and_of_either_scheme(
    tab: Tab, url: str, connects_to: str
) -> None:
    host = tab.url.removeprefix("http://")
    tab.page.evaluate("history.replaceState(null, '', '/?session=x#y')")
    address = tab.run(
        "(await follow({}, args[0], args[1])).connect(); link.close(); return sockets[0].url",
        url.replace("HOST", host),
        OTHER_SESSION,
    )
    assert address == connects_to.replace("HOST", host).replace("ID", OTHER_SESSION)


@either
@pytest.mark.parametrize("url", ["ftp://example.org/ws", "http://", "javascript:0"])
def test_an_address_that_cannot_be_one_is_refused_at_once(tab: Tab, url: str) -> None:
    assert (
        tab.run("return await follow({}, args[0]).then(() => null, (error) => error.name)", url)
        == "TypeError"
    )
