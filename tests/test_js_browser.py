"""clients/js: what only a browser has. The rest of it is tested in Node."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.browser import FLAGS, chromium_path
from tests.support.cable import Cable
from tests.support.processes import ServerProcess
from tests.support.profiles import Profiles
from tests.support.tabs import Tab, opened

BLANK = "/client/index.js"
"""Shown as text: a document of the server's that connects nowhere itself."""


@pytest.fixture
def tab(profiles: Profiles, server_process: ServerProcess) -> Iterator[Tab]:
    """In a profile that others have had: a test that changes more than its tab opens one of its own."""
    tab = Tab(profiles.lend(), server_process.url, BLANK)
    yield tab
    profiles.take_back()
    assert set(tab.uncaught) <= tab.tolerated


FOLLOW = """await server({}, args[1] ?? ORIGIN);
    globalThis.session = subscribe(args[0] ?? crypto.randomUUID());
    await rest("POST", "", { session_id: session.sessionId, sync_mode: "count_up" });
    await until(current);
"""


def test_a_page_is_served_follows_and_leaves_nothing(tab: Tab) -> None:
    outcome = tab.run(
        FOLLOW
        + """const { position } = await session.command("start");
        await until(() => session.position === position);
        const listened = [...listening].sort();
        lockstep.close();
        return [session.state.version, listened, left()];"""
    )
    assert outcome == [2, ["offline", "online", "pagehide", "pageshow", "visibilitychange"], [0, 0]]


def test_a_page_that_reconnects_collects_no_listeners_and_no_timers(tab: Tab) -> None:
    outcome = tab.run(
        """Math.random = () => 0;
        await follow();
        for (let i = 1; i <= 50; i++) {
            await until(online);
            drop();
            await until(() => sockets.length > i);
        }
        const during = [timers.size <= 4, listening.size];
        lockstep.close();
        return [during, left()];"""
    )
    assert outcome == [[True, 5], [0, 0]]


@pytest.mark.parametrize("event", ["online", "offline"])
def test_a_network_that_has_changed_is_tried_at_once(tab: Tab, event: str) -> None:
    outcome = tab.run(
        FOLLOW.replace("args[0]", "null")
        + """const asked = () => sent.filter(({ type }) => type === "PING").length;
        await until(() => asked() >= 5 && received.filter(({ type }) => type === "PONG").length === asked());
        const before = asked();
        dispatchEvent(new Event(args[0]));
        const after = asked();
        Math.random = () => 100;
        drop();
        await until(() => lockstep.status === "offline");
        dispatchEvent(new Event(args[0]));
        await until(current);
        return [after - before, statuses()];""",
        event,
    )
    assert outcome == [1, ["online", "offline", "online"]]


def test_the_browser_that_goes_offline_and_comes_back_is_followed(
    browser: Browser, server_process: ServerProcess
) -> None:
    cable = Cable(server_process.port)
    try:
        with opened(browser, cable.url, BLANK) as tab:
            tab.run(FOLLOW)
            cable.pull()
            tab.run('await until(() => lockstep.status === "offline" && !session.isCurrent);')
            tab.page.context.set_offline(True)
            cable.plug_in()
            tab.page.context.set_offline(False)
            tab.run("await until(current);")
    finally:
        cable.close()


def test_a_tab_that_is_looked_at_again_asks_at_once_and_its_late_timers_are_no_sleep(tab: Tab) -> None:
    outcome = tab.run(
        FOLLOW
        + """let isHidden = true;
        Object.defineProperty(document, "hidden", { get: () => isHidden });
        const asked = () => sent.filter(({ type }) => type === "PING").length;
        await until(() => asked() >= 5 && received.filter(({ type }) => type === "PONG").length === asked());
        const before = asked(), now = performance.now.bind(performance);
        performance.now = () => now() + 60_000;  // no timer has run for a minute
        const wall = Date.now;
        Date.now = () => wall() + 60_000;
        document.dispatchEvent(new Event("visibilitychange"));
        const hidden = asked();
        isHidden = false;
        document.dispatchEvent(new Event("visibilitychange"));
        return [hidden - before, asked() - before, statuses()];"""
    )
    assert outcome == [0, 1, ["online"]]


def test_a_sleep_in_which_the_monotonic_clock_ran_on_is_noticed(
    browser: Browser, server_process: ServerProcess
) -> None:
    with opened(browser, server_process.url, BLANK) as tab:
        tab.page.clock.install()
        tab.run("await follow(); await until(online);")
        tab.page.clock.fast_forward("01:00:00")
        outcome = tab.run("""
            await until(() => statuses().includes("unsure"));
            await until(online);
            return statuses().slice(0, 2);""")
    assert outcome == ["online", "unsure"]


def test_a_token_that_never_comes_costs_one_attempt(browser: Browser, server_process: ServerProcess) -> None:
    with opened(browser, server_process.url, BLANK) as tab:
        tab.page.clock.install()
        tab.run(
            """const asked = globalThis.asked = [];
            await follow({ token: () => new Promise((resolve) => asked.push(resolve)) });"""
        )
        tab.page.clock.run_for(2_000)
        assert tab.run("return [asked.length, log.length]") == [1, 0]
        tab.page.clock.run_for(8_000)
        told = tab.run('return logged("status", "lockstep").map(({ status, code }) => [status, code]);')
        assert told == [["offline", "TOKEN_UNAVAILABLE"]]
        tab.page.clock.run_for(500)
        outcome = tab.run(
            """asked[0]("");  // too late, and no longer wanted
            await 0;
            const before = sockets.length;
            asked[1]("");
            await until(online);
            return [before, sockets.length, asked.length];"""
        )
    assert outcome == [0, 1, 2]


# ---- A page that is left and shown again as it was ----


def test_a_page_that_is_left_closes_its_socket_and_comes_back_when_it_is_shown(tab: Tab) -> None:
    outcome = tab.run(
        FOLLOW
        + """const before = timers.size;
        dispatchEvent(new PageTransitionEvent("pagehide", { persisted: true }));
        const hidden = [lockstep.status, session.isCurrent, sockets[0].readyState > 1, timers.size];
        await rest("POST", `/${session.sessionId}/start`);
        dispatchEvent(new PageTransitionEvent("pageshow", { persisted: true }));
        await until(() => current() && session.state.version === 2);
        return [hidden, sockets.length];"""
    )
    # One timer looks at the clocks.
    assert outcome == [["offline", False, True, 1], 2]


@pytest.fixture
def keeping(browser: Browser) -> Iterator[Browser]:
    """A browser that keeps pages that were left: playwright turns that off unless it is told not to."""
    launched = browser.browser_type.launch(
        executable_path=chromium_path(), args=FLAGS, ignore_default_args=["--disable-back-forward-cache"]
    )
    yield launched
    launched.close()


def test_a_page_comes_out_of_the_browsers_cache_and_is_current_again(
    keeping: Browser, server_process: ServerProcess
) -> None:
    with opened(keeping, server_process.url, BLANK) as tab:
        tab.run(FOLLOW)
        tab.page.goto(server_process.url + "/favicon.svg")
        tab.page.go_back(wait_until="commit")
        outcome = tab.run(
            """await until(current);
            await session.command("start");
            await until(() => session.state.version === 2);
            return [sockets.length, statuses()];"""
        )
    assert outcome == [2, ["online", "offline", "online"]]


# ---- Addresses ----


@pytest.mark.parametrize("url", ["/", ".", "./?a=b#c", "//HOST/", "http://HOST", ""])
def test_an_address_is_relative_to_the_document(tab: Tab, url: str) -> None:
    host = tab.url.removeprefix("http://")
    tab.page.evaluate("history.replaceState(null, '', '/?session=x#y')")
    address = tab.run(
        "(await server({}, args[0])).connect(); lockstep.close(); return sockets[0].url",
        url.replace("HOST", host),
    )
    assert address == f"ws://{host}/ws"


# ---- What these tests share ----


def test_a_profile_that_is_lent_again_has_forgotten_what_it_stored(
    profiles: Profiles, server_process: ServerProcess
) -> None:
    lent, found = [], []
    for _ in range(2):
        lent.append(profiles.lend())
        assert profiles.lend() is lent[-1]
        assert profiles.lend(apart=True) is not lent[-1]
        tab = Tab(lent[-1], server_process.url, BLANK)
        found.append(tab.run("return [localStorage.length, document.cookie];"))
        tab.run("localStorage.a = 'b'; document.cookie = 'c=d';")
        profiles.take_back()
    assert lent[0] is lent[1]
    assert found == [[0, ""], [0, ""]]
