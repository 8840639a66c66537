"""The page in headless Chromium, against a real server."""

import math
import re
import time
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from playwright.sync_api import Page, Route, expect

from tests.support.cable import Cable
from tests.support.pages import RUNS, SMALL_PHONE, Tabs, barriers, clean_tabs
from tests.support.processes import ServerProcess
from tests.support.profiles import Profiles
from tests.support.tabs import older
from tests.support.variants import first_of

PRESETS = ["chess", "quiz", "debate", "exam", "speedrun"]
PHONE = {"width": 360, "height": 640}
SECRET = "a secret of more than thirty-two bytes, for tests only"
NOSNIFF = b"X-Content-Type-Options: nosniff\r\n"
CSP = (
    b"Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"img-src 'self'\r\n"
)


@pytest.fixture
def tabs(profiles: Profiles, server_process: ServerProcess) -> Iterator[Tabs]:
    yield from clean_tabs(profiles, server_process.url)


@pytest.fixture
def cable(tabs: Tabs, server_process: ServerProcess) -> Iterator[Cable]:
    cable = Cable(server_process.port)
    yield cable
    tabs.close()  # else they would complain that the cable is gone
    cable.close()


def version(page: Page) -> int:
    return int((page.locator("#version").text_content() or "v0")[1:])


def wait_for_version(page: Page, version: int) -> None:
    expect(page.locator("#version")).to_have_text(f"v{version}")


def shown_ms(page: Page, selector: str) -> tuple[float, float]:
    """What a face shows in this very frame, and the machine's time at which it did."""
    script = """async (selector) => {
        await new Promise(requestAnimationFrame);
        const [whole, fraction = "0"] = document.querySelector(selector).textContent.split(".");
        const seconds = whole.split(":").reduce((sum, part) => 60 * sum + Number(part), 0);
        return [1000 * (seconds + Number("0." + fraction)), performance.timeOrigin + performance.now()];
    }"""
    shown, at = page.evaluate(script, selector)
    return shown, at


def turn(name: str) -> str:
    return f"{name}\N{RIGHT SINGLE QUOTATION MARK}s turn"


PEOPLE = {name: str(uuid.uuid4()) for name in ("Ann", "Ben", "Cleo", "Dan")}
TEAMS = {name: str(uuid.uuid4()) for name in ("Reds", "Blues")}


def short(mode: str, *left_ms: int, on_timeout: str = "flag", people: int = 4) -> dict[str, Any]:
    """A session of some of PEOPLE, in TEAMS by turns, whose clocks have `left_ms` each."""
    participants: list[dict[str, Any]] = [{"participant_id": id_} for id_ in list(PEOPLE.values())[:people]]
    for number, participant in enumerate(participants):
        if mode in ("per_participant", "per_group"):
            participant["total_time_ms"] = left_ms[number % len(left_ms)]
        if mode == "per_group":
            participant["group_id"] = list(TEAMS.values())[number % 2]
    clock = {"per_cycle": "time_per_cycle_ms", "global": "total_time_ms"}.get(mode)
    names = {id_: name for name, id_ in (PEOPLE | TEAMS).items()}
    return {
        "sync_mode": mode,
        "on_timeout": on_timeout,
        "participants": participants,
        "metadata": {"title": "A clock", "names": names},
    } | ({clock: left_ms[0]} if clock else {})


def name_of_turn(page: Page) -> str:
    return page.locator(f"{RUNS} .name").text_content() or ""


# ---- The start page ----


def wait_for(page: Page, expression: str) -> None:
    """Until it is true. Playwright's own way evaluates strings in the page, which its policy forbids."""
    for _ in range(1000):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(10)
    raise AssertionError(f"never true: {expression}")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_creates_a_clock_that_starts_and_ticks(tabs: Tabs, preset: str) -> None:
    page = tabs.create(preset)
    before = page.locator(".face").first.text_content()
    page.click("#primary")
    expect(page.locator(RUNS)).to_be_visible()
    expect(page.locator(f"{RUNS} .face")).not_to_have_text(before or "")


@pytest.mark.long
def test_every_pace_that_is_offered_makes_a_clock(tabs: Tabs) -> None:
    faces = {}
    page = tabs.open()
    for number in range(page.locator("[data-preset]").count()):
        page.goto(tabs.url)
        option = page.locator("[data-preset]").nth(number)
        name = f"{option.get_attribute('data-preset')} {option.text_content()}"
        option.click()
        expect(page.locator(".face").first).to_be_visible()
        faces[name] = page.locator(".face").all_text_contents()
    assert faces == {
        "chess 3 + 2": ["3:00", "3:00"],
        "chess 5 + 3": ["5:00", "5:00"],
        "chess 15 + 10": ["15:00", "15:00"],
        "quiz 15 s": ["0:15"],
        "quiz 30 s": ["0:30"],
        "quiz 60 s": ["1:00"],
        "debate 5 min": ["5:00", "5:00"],
        "debate 10 min": ["10:00", "10:00"],
        "debate 20 min": ["20:00", "20:00"],
        "exam 10 min": ["10:00"],
        "exam 45 min": ["45:00"],
        "exam 90 min": ["1:30:00"],
        "speedrun New stopwatch": ["0:00.00"],
    }


# ---- Two tabs, one clock ----


def test_two_tabs_show_the_same_running_clock(tabs: Tabs) -> None:
    one = tabs.start("speedrun")  # its face has hundredths
    other = tabs.also_open(one)
    for page in (one, other):
        wait_for(page, "parseFloat(document.querySelector('.face').textContent.split(':')[1]) > 0.5")

    def apart_ms() -> float:
        shown, at = shown_ms(one, ".face")
        shown_other, at_other = shown_ms(other, ".face")
        return abs((shown_other - shown) - (at_other - at))

    # A page that was not drawn for a while, or that has just measured the time badly, is right soon after.
    for _ in range(100):
        if apart_ms() < 500:
            break
        one.wait_for_timeout(100)
    else:
        raise AssertionError(f"they are {apart_ms()} ms apart")


def test_a_switch_in_one_tab_appears_in_the_other(tabs: Tabs) -> None:
    body = short("per_participant", 900_000, people=2) | {"increment_ms": 60_000}
    one = tabs.open_session(body)
    one.click("#primary")
    other = tabs.also_open(one)
    expect(other.locator("#status")).to_have_text(turn("Ann"))
    one.click("#primary")
    expect(other.locator("#status")).to_have_text(turn("Ben"))
    assert name_of_turn(other) == "Ben"
    # Ann used less than the minute that a move adds.
    expect(other.locator(".face").first).to_have_text(re.compile(r"15:\d\d|16:00"))
    assert version(other) == version(one) == 3


def test_pause_resume_and_finish_reach_the_other_tab(tabs: Tabs) -> None:
    one = tabs.start("debate")
    other = tabs.also_open(one)
    one.click("#pause")
    expect(other.locator("#status")).to_have_text("Paused · " + turn("Pro 1"))
    expect(other.locator(".panel[data-look=held] .name")).to_have_text("Pro")
    other.click("#primary")
    expect(one.locator("#status")).to_have_text(turn("Pro 1"))
    one.click("#finish")
    expect(one.locator("#finish")).to_contain_text("Sure?")
    one.click("#finish")
    for page in (one, other):
        expect(page.locator("#status")).to_have_text("Finished")
        expect(page.locator("#again")).to_be_visible()
        expect(page.locator("#primary")).to_be_hidden()


def test_a_double_click_switches_once(tabs: Tabs) -> None:
    page = tabs.start("chess")
    # The second click comes when the first one's effect is already shown, so only its haste betrays it.
    page.evaluate("""async () => {
        const now = performance.now();
        performance.now = () => now;
        document.getElementById("primary").click();
        const shown = () => document.getElementById("version").textContent === "v3";
        while (!shown()) await new Promise(requestAnimationFrame);
        document.getElementById("primary").click();
    }""")
    page.click("#pause")  # whatever the second click sent is before this
    expect(page.locator("#status")).to_have_text("Paused · " + turn("Black"))
    assert version(page) == 4


def test_a_turn_that_has_ended_elsewhere_is_not_ended_again(tabs: Tabs, cable: Cable) -> None:
    one = tabs.start("chess")
    other = tabs.also_open(one, cable.url)
    expect(other.locator("#status")).to_have_text(turn("White"))
    cable.on_reply(lambda data: b"" if b'"UPDATE"' in data else data)  # as if it were still on its way
    one.click("#primary")
    wait_for_version(one, 3)
    other.click("#primary")
    expect(other.locator("#toast")).to_contain_text("Somebody else was quicker")
    one.click("#pause")
    expect(one.locator("#status")).to_have_text("Paused · " + turn("Black"))
    assert version(one) == 4
    assert [text for text in tabs.complaints if "409" not in text] == []
    tabs.complaints.clear()


def test_a_tap_gives_the_turn_to_whoever_is_tapped(tabs: Tabs) -> None:
    page = tabs.create("quiz")
    page.get_by_role("button", name="Team C", exact=True).click()
    expect(page.locator("#status")).to_have_text(turn("Team C"))
    page.get_by_role("button", name="Team A", exact=True).click()
    expect(page.locator("#status")).to_have_text(turn("Team A"))


def test_a_late_team_joins_a_quiz(tabs: Tabs) -> None:
    page = tabs.start("quiz", option=2)
    other = tabs.also_open(page)
    page.get_by_role("button", name="Team D", exact=True).click()
    expect(page.locator("#status")).to_have_text(turn("Team D"))
    for name in ("Team E", "The late ones"):
        page.get_by_role("button", name="+ Team").click()
        if name != "Team E":  # which is what the page proposes
            page.get_by_label("Name of the team").fill(name)
        page.keyboard.press("Enter")
        for tab in (page, other):
            expect(tab.get_by_role("button", name=name, exact=True)).to_be_visible()
    page.get_by_role("button", name="+ Team").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status")).to_have_text(turn("Team D"))
    expect(page.locator(".note")).to_have_text("Round 1")
    other.click("#primary")
    for tab in (page, other):
        expect(tab.locator("#status")).to_have_text(turn("Team E"))
        expect(tab.locator(".note")).to_have_text("Round 1")
    page.click("#finish")
    page.click("#finish")
    expect(page.get_by_role("button", name="+ Team")).to_be_hidden()


COMMAND = """([verb, body]) => fetch(`v1/sessions/${location.search.split("=")[1]}/${verb}`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })"""


def test_whoever_comes_has_a_panel_and_whoever_leaves_has_none_any_more(tabs: Tabs) -> None:
    page = tabs.start("chess")
    newcomer = {"participant_id": str(uuid.uuid4()), "total_time_ms": 60_000}
    page.evaluate(COMMAND, ["seat", {"participants": [newcomer]}])
    expect(page.locator(".panel")).to_have_count(3)
    expect(page.locator(".panel .name").last).to_have_text("Participant 3")
    page.locator(".press").last.click()
    expect(page.locator("#status")).to_have_text(turn("Participant 3"))
    first = page.evaluate(
        "fetch(`v1/sessions/${location.search.split('=')[1]}`).then((answer) => answer.json())"
    )
    leaving = first["data"]["participants"][0]["participant_id"]
    page.evaluate(COMMAND, ["unseat", {"participant_id": leaving}])
    expect(page.locator(".panel")).to_have_count(2)
    assert [each.text_content() for each in page.locator(".panel .name").all()] == ["Black", "Participant 2"]
    page.wait_for_timeout(400)  # longer than a double click
    page.click("#primary")
    expect(page.locator("#status")).to_have_text(turn("Black"))


def test_who_has_the_focus_keeps_it_when_a_team_comes(tabs: Tabs) -> None:
    page = tabs.create("quiz")
    page.get_by_role("button", name="Team B", exact=True).focus()
    page.evaluate(COMMAND, ["seat", {"participants": [{}]}])
    expect(page.get_by_role("button", name="Participant 5", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Team B", exact=True)).to_be_focused()


def test_laps_are_listed_also_for_who_comes_later(tabs: Tabs) -> None:
    page = tabs.start("speedrun")
    for lap in (1, 2):
        wait_for(page, "parseFloat(document.querySelector('.note').textContent.split(':')[1]) > 0.35")
        page.click("#primary")
        expect(page.locator("#laps li")).to_have_count(lap)
    other = tabs.also_open(page)
    expect(other.locator("#laps li")).to_have_count(2)
    assert other.locator("#laps").text_content() == page.locator("#laps").text_content()
    expect(page.locator("#laps li").first).to_contain_text(re.compile(r"^Lap 2.*\d:\d\d\.\d\d$"))


class Refusals:
    """Answers 503 to the page's first `count` requests for the history."""

    def __init__(self, page: Page, count: float) -> None:
        self.left = count
        self.asked = 0
        page.route("**/events?*", self._on_request)

    def _on_request(self, route: Route) -> None:
        self.asked += 1
        self.left -= 1
        if self.left >= 0:
            route.fulfill(status=503, json={"error": {"code": "BROKER_UNAVAILABLE", "message": "away"}})
        else:
            route.continue_()


def forget_503(tabs: Tabs) -> None:
    """The browser complains of each in its console."""
    assert [text for text in tabs.complaints if "503" not in text] == []
    tabs.complaints.clear()


@pytest.mark.long
def test_laps_that_could_not_be_fetched_are_listed_though_nothing_changes_any_more(tabs: Tabs) -> None:
    page = tabs.start("speedrun")
    refusals = Refusals(page, 2)
    page.click("#primary")
    wait_for_version(page, 3)  # the last state that there is
    expect(page.locator("#laps li")).to_have_count(1, timeout=15_000)
    assert refusals.asked == 3
    forget_503(tabs)


def test_laps_are_not_asked_for_any_more_when_the_session_is_gone(tabs: Tabs) -> None:
    page = tabs.open()
    page.clock.install()  # timers come as the test says
    page.locator("[data-preset=speedrun]").first.click()
    page.click("#primary")
    expect(page.locator(RUNS)).to_be_visible()
    refusals = Refusals(page, math.inf)
    page.click("#primary")
    wait_for_version(page, 3)
    for _ in range(1000):
        if refusals.asked > 3:
            break
        page.clock.run_for(1000)
    assert refusals.asked > 3
    page.evaluate("""() => fetch(`v1/sessions/${location.search.split("=")[1]}`, { method: "DELETE" })""")
    expect(page.locator("#notice")).to_be_visible()
    before = refusals.asked
    page.clock.run_for(300_000)
    page.evaluate("""() => fetch("health")""")  # whatever the timers sent is before this
    assert refusals.asked == before
    page.context.close()  # the clock is that of all its pages
    # By such a clock no answer comes in time: the page has connected again and again.
    tabs.complaints = [text for text in tabs.complaints if "before the connection is established" not in text]
    forget_503(tabs)


@pytest.mark.long
def test_of_very_many_laps_the_latest_are_listed_by_their_numbers(tabs: Tabs) -> None:
    page = tabs.open()
    session = page.evaluate("""async () => {
        const headers = { "Content-Type": "application/json" };
        const post = (path, body) => fetch("v1/sessions" + path, { method: "POST", headers, body });
        const answer = await post("", JSON.stringify({ sync_mode: "count_up", participants: [] }));
        const { session_id } = (await answer.json()).data;
        await post(`/${session_id}/start`);
        for (let i = 0; i < 50; i++) {
            await Promise.all(Array.from({ length: 20 }, () => post(`/${session_id}/switch`)));
        }
        return session_id;
    }""")
    page.goto(f"{tabs.url}/?session={session}")
    expect(page.locator("#laps li")).to_have_count(900)
    expect(page.locator("#laps li").first).to_contain_text("Lap 1000")


def test_the_shared_link_opens_the_same_clock(tabs: Tabs) -> None:
    page = tabs.create("exam")
    page.click("#share")
    link = page.get_by_label("Link to this clock").input_value()
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    page.keyboard.press("Escape")
    other = tabs.open(link)
    page.click("#primary")
    expect(other.locator("#status")).to_have_text("Running")


# ---- Connection ----


def test_a_tab_whose_connection_is_cut_says_so_and_catches_up(tabs: Tabs, cable: Cable) -> None:
    steady = tabs.start("chess")
    cut = tabs.also_open(steady, cable.url)
    expect(cut.locator("#link-text")).to_have_text("Connected")
    cable.pull()
    expect(cut.locator("#link-text")).to_have_text("Reconnecting…")
    expect(cut.locator("#offline")).to_be_visible()
    before = cut.locator(f"{RUNS} .face").text_content()
    expect(cut.locator(f"{RUNS} .face")).not_to_have_text(before or "")  # it runs on
    steady.click("#primary")
    expect(steady.locator("#status")).to_have_text(turn("Black"))
    expect(cut.locator("#status")).to_have_text(turn("White"))
    cut.click("#primary")
    expect(cut.locator("#toast")).to_contain_text("The server does not answer")
    cable.plug_in()
    expect(cut.locator("#link-text")).to_have_text("Connected", timeout=20_000)
    expect(cut.locator("#offline")).to_be_hidden()
    expect(cut.locator("#status")).to_have_text(turn("Black"))
    wait_for_version(cut, version(steady))
    # The browser's own words about what was refused are as they should be.
    assert all("ERR_" in text for text in tabs.complaints)
    tabs.complaints.clear()


@pytest.mark.long
def test_a_dead_line_is_noticed_though_nothing_closes_it(tabs: Tabs) -> None:
    # The server must not notice first: it would close, and the line tell the page.
    patient = ServerProcess("--ping-interval-s=300", "--ping-timeout-s=200", "--log-level=warning")
    cable = Cable(patient.port)
    try:
        page = tabs.start("chess", url=cable.url)
        cable.swallow()
        expect(page.locator("#link-text")).to_have_text("Reconnecting…", timeout=20_000)
        cable.plug_in()
        expect(page.locator("#link-text")).to_have_text("Connected", timeout=30_000)
        page.close()
    finally:
        cable.close()
        patient.stop()
    tabs.complaints.clear()


def test_a_clock_that_is_deleted_leaves_with_a_word(tabs: Tabs) -> None:
    page = tabs.start("exam")
    page.evaluate("fetch('v1/sessions/' + location.search.split('=')[1], { method: 'DELETE' })")
    expect(page.get_by_role("heading", name="This clock was deleted")).to_be_visible()
    expect(page.locator("#link-text")).to_have_text("Ended")
    page.locator("#notice").get_by_role("link", name="New clock").click()
    expect(page.locator("#home")).to_be_visible()


def test_a_clock_that_is_made_anew_under_its_link_is_shown_again(tabs: Tabs) -> None:
    page = tabs.open_session(short("global", 60_000))
    session_id = page.url.partition("=")[2]
    url = f"{tabs.url}/v1/sessions"
    page.request.delete(f"{url}/{session_id}")
    expect(page.get_by_role("heading", name="This clock was deleted")).to_be_visible()
    page.request.post(url, data=short("per_participant", 90_000, people=2) | {"session_id": session_id})
    expect(page.locator(".panel")).to_have_count(2)
    expect(page.locator("#link-text")).to_have_text("Connected")
    page.click("#primary")
    expect(page.locator("#status")).to_have_text(turn("Ann"))


def test_the_page_says_that_a_server_without_protocol_v2_is_too_old(
    tabs: Tabs, server_process: ServerProcess
) -> None:
    with older(server_process.port) as cable:
        page = tabs.open(f"{cable.url}/?session={uuid.uuid4()}")
        expect(page.get_by_role("heading", name="This server is too old for this page")).to_be_visible()
        expect(page.locator("#link-text")).to_have_text("Not connected")
        page.close()


def test_a_link_to_nothing_says_so_kindly(tabs: Tabs) -> None:
    page = tabs.open(tabs.url + "/?session=00000000-0000-4000-8000-000000000000")
    expect(page.get_by_role("heading", name="There is no clock here")).to_be_visible()
    page.goto(tabs.url + "/?session=half-a-link")
    expect(page.get_by_role("heading", name="This link is not complete")).to_be_visible()
    page = tabs.open(f"{tabs.url}/?session={uuid.uuid4()}#token=half a token")
    expect(page.get_by_role("heading", name="This link is not complete")).to_be_visible()


def test_a_clock_made_elsewhere_is_shown_without_any_metadata(tabs: Tabs) -> None:
    session = "7f3c1f6e-2f6b-4b0e-9a51-0d6f3c1d2e3f"
    page = tabs.open(f"{tabs.url}/?session={session}")
    expect(page.locator("#notice")).to_be_visible()
    body = {
        "session_id": session,
        "sync_mode": "per_participant",
        "participants": [
            {"participant_id": f"{n}0000000-0000-4000-8000-000000000000", "total_time_ms": 61_000}
            for n in (1, 2, 3)
        ],
    }
    script = """(body) => fetch("v1/sessions", {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })"""
    page.evaluate(script, body)
    expect(page.locator(".name")).to_have_text(["Participant 1", "Participant 2", "Participant 3"])
    expect(page.locator(".face")).to_have_text(["1:01", "1:01", "1:01"])


# ---- Running out ----


def test_a_clock_that_has_run_out_says_so(tabs: Tabs) -> None:
    people = [{"participant_id": str(uuid.uuid4()), "total_time_ms": 1000 * n} for n in (1, 2)]
    page = tabs.open_session({"sync_mode": "per_participant", "participants": people})
    page.click("#primary")
    expect(page.locator(".panel[data-look=out] .face")).to_have_text("0:00")
    expect(page.locator(".panel[data-look=out] .note")).to_have_text("Out of time")
    page.click("#primary")
    expect(page.locator("#status")).to_have_text(turn("Participant 2"))


@pytest.mark.parametrize(
    ("body", "status"),
    first_of(
        [
            (short("per_participant", 1_000, 9_000, people=2), "Ann is out of time"),
            (short("per_group", 1_000, 9_000), "Reds is out of time"),
            (short("per_cycle", 1_000), "Ann is out of time"),
            (short("global", 1_000), "Time is up"),
            (short("global", 1_000, people=0), "Time is up"),
            (short("per_participant", 1_000, 9_000, people=2, on_timeout="expire"), "Ann is out of time"),
            (short("per_participant", 1_000, people=1, on_timeout="advance"), "Ann is out of time"),
            (short("per_participant", 1_000, people=2, on_timeout="advance"), "Time is up"),
            (short("global", 1_000, on_timeout="expire"), "Time is up"),
        ]
    ),
    ids=["chess", "debate", "quiz", "exam", "lonely exam", "lost", "alone", "all out", "exam over"],
)
def test_a_flag_says_whose_it_is(tabs: Tabs, body: dict[str, Any], status: str) -> None:
    page = tabs.open_session(body)
    page.click("#primary")
    expect(page.locator("#status")).to_have_text(status)
    expect(page.locator(".panel[data-look=out]").first).to_be_visible()
    if body["on_timeout"] == "flag":
        page.click("#pause" if body["participants"] else "#primary")
        expect(page.locator("#status")).to_have_text(f"Paused · {status}")


def test_an_exam_that_is_finished_early_keeps_what_it_had_left(tabs: Tabs) -> None:
    page = tabs.open_session(short("global", 600_000, people=0))
    page.click("#primary")
    expect(page.locator(RUNS)).to_be_visible()
    page.evaluate(COMMAND, ["adjust", {"delta_ms": -61_000}])
    page.click("#primary")  # it pauses
    expect(page.locator("#status")).to_have_text("Paused")
    left = page.locator(".face").text_content() or ""
    assert left.startswith("8:")
    page.click("#primary")
    expect(page.locator("#status")).to_have_text("Running")
    for _ in range(2):
        page.click("#finish")
    for tab in (page, tabs.also_open(page)):
        expect(tab.locator("#status")).to_have_text(re.compile(r"Finished with 8:\d\d left"))
        expect(tab.locator(".face")).to_have_text(re.compile(r"8:\d\d"))
        expect(tab.locator(".note")).to_have_text("left")


# ---- Tokens ----


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that wants tokens."""
    secret = tmp_path_factory.mktemp("keys") / "secret"
    secret.write_text(SECRET)
    server = ServerProcess(f"--jwt-secret-file={secret}", "--log-level=warning")
    yield server
    server.stop()


def token(sid: str = "*", scope: str = "view", ttl_s: float = 600) -> str:
    claims = {"sid": sid, "scope": scope, "sub": "u1", "exp": int(time.time() + ttl_s)}
    return jwt.encode(claims, SECRET, algorithm="HS256")


@pytest.mark.parametrize(
    ("claims", "heading", "text"),
    [
        (None, "This clock asks for a token", "Ask whoever keeps it for a link of your own."),
        ({"ttl_s": -60}, "This link no longer lets you in", "This token has expired. Ask for a new link."),
        ({"ttl_s": -3}, "This link no longer lets you in", "This token has expired. Ask for a new link."),
        (
            {"sid": PEOPLE["Ann"]},
            "This link is for another clock",
            "This token is not for this session. Ask for the",
        ),
    ],
    ids=["none", "expired", "expires while watched", "of another session"],
)
def test_a_link_that_is_refused_says_why(
    tabs: Tabs, guarded: ServerProcess, claims: dict[str, Any] | None, heading: str, text: str
) -> None:
    link = f"{guarded.url}/?session={uuid.uuid4()}"
    page = tabs.open(link if claims is None else f"{link}#token={token(**claims)}")
    expect(page.get_by_role("heading", name=heading)).to_be_visible(timeout=10_000)
    expect(page.locator("#notice-text")).to_contain_text(text)
    expect(page.locator("#link-text")).to_have_text("Not connected")


def test_the_token_of_a_link_does_what_its_scope_allows(tabs: Tabs, guarded: ServerProcess) -> None:
    page = tabs.open(f"{guarded.url}/#token={token(scope='admin')}")
    page.locator("[data-preset=chess]").first.click()
    page.click("#primary")
    expect(page.locator("#status")).to_have_text(turn("White"))
    page.click("#share")
    expect(page.locator("#share-text")).to_contain_text("Whoever has it can do here what you can")
    assert page.get_by_label("Link to this clock").input_value() == page.url
    watching = tabs.open(page.url.partition("#")[0] + f"#token={token(scope='view')}")
    expect(watching.locator("#status")).to_have_text(turn("White"))
    expect(watching.locator("#watching")).to_have_text("You are watching.")
    # The page has asked whether somebody without a token may watch.
    assert all("401" in text for text in tabs.complaints)
    tabs.complaints.clear()


# ---- Keyboard, phone, policy ----


@pytest.mark.parametrize("opens", ["click", "keyboard"])
@pytest.mark.parametrize("closes", ["Escape", "click"])
def test_after_share_the_space_bar_is_the_turns_again(tabs: Tabs, opens: str, closes: str) -> None:
    page = tabs.start("chess")
    if opens == "click":
        page.click("#share")
    else:
        page.locator("#share").focus()
        page.keyboard.press("Enter")
    expect(page.locator("#share-dialog")).to_be_visible()
    if closes == "Escape":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Close").click()
    expect(page.locator("#share-dialog")).to_be_hidden()
    expect(page.locator("#primary")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("#status")).to_have_text(turn("Black"))
    expect(page.locator("#share-dialog")).to_be_hidden()


def test_what_was_clicked_does_not_keep_the_space_bar(tabs: Tabs) -> None:
    page = tabs.start("quiz")
    page.get_by_role("button", name="Team C", exact=True).click()
    expect(page.locator("#status")).to_have_text(turn("Team C"))
    page.wait_for_timeout(400)  # longer than a double click
    page.keyboard.press("Space")
    expect(page.locator("#status")).to_have_text(turn("Team D"))
    page.click("#finish")
    page.wait_for_timeout(400)
    page.keyboard.press("Space")
    expect(page.locator("#status")).to_have_text(turn("Team A"))


def test_everything_can_be_done_by_keyboard(tabs: Tabs) -> None:
    page = tabs.open()
    page.get_by_role("button", name="5 + 3").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".face").first).to_be_visible()
    page.keyboard.press("Space")
    expect(page.locator("#status")).to_have_text(turn("White"))
    page.keyboard.press("Space")
    expect(page.locator("#status")).to_have_text(turn("Black"))
    page.keyboard.press("p")
    expect(page.locator("#status")).to_have_text("Paused · " + turn("Black"))
    page.keyboard.press("p")
    expect(page.locator("#status")).to_have_text(turn("Black"))
    page.keyboard.press("f")
    page.keyboard.press("f")
    expect(page.locator("#status")).to_have_text("Finished")
    assert version(page) == 6


def test_a_focused_button_answers_the_space_bar_alone(tabs: Tabs) -> None:
    page = tabs.start("chess")
    page.locator("#pause").focus()
    page.keyboard.press("Space")
    expect(page.locator("#status")).to_have_text("Paused · " + turn("White"))
    assert version(page) == 3


def test_the_focus_can_be_seen(tabs: Tabs) -> None:
    page = tabs.create("debate")
    outlines = set()
    for _ in range(9):
        page.keyboard.press("Tab")
        outlines.add(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
    assert outlines == {"solid"}


def test_the_controls_and_whose_turn_it_is_stay_in_sight_of_many(tabs: Tabs) -> None:
    people = [{"participant_id": str(uuid.uuid4()), "total_time_ms": 60_000} for _ in range(12)]
    page = tabs.open_session({"sync_mode": "per_participant", "participants": people}, viewport=PHONE)
    page.get_by_role("button", name="Participant 11: begins").press("Enter")
    expect(page.locator(RUNS)).to_be_in_viewport(ratio=1)
    page.evaluate("scrollTo(0, 0)")
    expect(page.locator("#primary")).to_be_in_viewport(ratio=1)
    page.click("#primary")
    expect(page.locator("#status")).to_have_text(turn("Participant 12"))
    expect(page.locator(RUNS)).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("phone", first_of([SMALL_PHONE, PHONE]), ids=["small phone", "phone"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_phone_shows_a_whole_clock_without_scrolling(
    tabs: Tabs, preset: str, phone: dict[str, int]
) -> None:
    def size() -> list[int]:
        root = "document.documentElement"
        sizes: list[int] = page.evaluate(f"[{root}.scrollWidth, {root}.scrollHeight]")
        return sizes

    page = tabs.create(preset, viewport=phone, has_touch=True, is_mobile=True)
    whole = list(phone.values())
    assert size() == whole
    page.click("#primary")
    expect(page.locator(RUNS)).to_be_visible()
    assert size() == whole
    page.keyboard.press("p")
    expect(page.locator(".panel[data-look=held]")).to_be_visible()
    assert size() == whole
    for face in page.locator(".face").all():
        box, room = face.bounding_box(), face.locator("..").bounding_box()
        assert box is not None
        assert room is not None
        assert box["width"] <= room["width"] + 1
        assert box["height"] <= room["height"] + 1
    for button in page.locator("button:visible").all():
        box = button.bounding_box()
        assert box is not None
        assert box["height"] >= 40


def test_the_start_page_is_no_wider_than_a_phone(tabs: Tabs) -> None:
    page = tabs.open(viewport=PHONE)
    expect(page.locator("#home")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_dark_and_light_differ(tabs: Tabs) -> None:
    page, grounds = tabs.open(), []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(245, 243, 238)", "rgb(16, 19, 18)"]


def test_the_page_needs_nothing_inline(tabs: Tabs, cable: Cable) -> None:
    policies = []

    def with_policy(data: bytes) -> bytes:
        policies.append(data.count(NOSNIFF))
        return data.replace(NOSNIFF, NOSNIFF + CSP)

    cable.on_reply(with_policy)
    page = tabs.start("quiz", url=cable.url)
    expect(page.locator("#link-text")).to_have_text("Connected")
    assert sum(policies) >= 4, "the policy was not sent"


def test_the_page_allows_nothing_inline(tabs: Tabs) -> None:
    """The other tests show that it works so; a script that somebody brought in would not."""
    with urllib.request.urlopen(tabs.url + "/", timeout=10) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Frame-Options"] == "DENY"
    assert "unsafe" not in policy


# ---- Everybody can use it ----


@pytest.mark.parametrize("preset", first_of(PRESETS))
def test_axe_finds_no_barrier_in_a_clock_from_its_start_to_its_end(tabs: Tabs, preset: str) -> None:
    page = tabs.create(preset)
    assert barriers(page) == []
    page.click("#primary")
    expect(page.locator(RUNS)).to_be_visible()
    if preset == "speedrun":
        page.click("#primary")
        expect(page.locator("#laps li")).to_have_count(1)
    assert barriers(page) == []
    page.keyboard.press("p")
    expect(page.locator(".panel[data-look=held]")).to_be_visible()
    assert barriers(page) == []
    page.click("#finish")
    page.click("#finish")
    expect(page.locator("#status")).to_contain_text("Finished")
    assert barriers(page) == []


@pytest.mark.parametrize(
    ("mode", "target"),
    first_of([("per_participant", "Ann"), ("per_group", "Reds"), ("per_cycle", None), ("global", None)]),
)
def test_axe_finds_no_barrier_in_a_clock_that_runs_low_and_out(
    tabs: Tabs, mode: str, target: str | None
) -> None:
    def adjust(delta_ms: int) -> None:
        script = """(body) => fetch(`v1/sessions/${location.search.split("=")[1]}/adjust`, {
            method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })"""
        page.evaluate(script, {"delta_ms": delta_ms, "target": target and (PEOPLE | TEAMS)[target]})

    page = tabs.open_session(short(mode, 1_200_000))
    page.click("#primary")
    expect(page.locator(RUNS)).to_be_visible()
    adjust(-1_182_000)
    expect(page.locator(".panel[data-look=low]")).to_be_visible()
    assert barriers(page) == []
    adjust(-60_000)
    expect(page.locator(".panel[data-look=out]")).to_be_visible()
    assert barriers(page) == []


def test_axe_finds_no_barrier_around_the_clocks(tabs: Tabs, cable: Cable) -> None:
    page = tabs.open()
    page.get_by_text("Your own names").click()
    assert barriers(page) == []
    page = tabs.start("quiz", url=cable.url)
    page.get_by_role("button", name="+ Team").click()
    expect(page.locator("#team-dialog")).to_be_visible()
    assert barriers(page) == []
    page.keyboard.press("Escape")
    page.click("#share")
    expect(page.locator("#share-dialog")).to_be_visible()
    assert barriers(page) == []
    page.keyboard.press("Escape")
    cable.pull()
    expect(page.locator("#offline")).to_be_visible()
    page.click("#primary")
    expect(page.locator("#toast")).to_be_visible()
    assert barriers(page) == []
    page.goto(tabs.url + "/?session=half-a-link")
    expect(page.locator("#notice")).to_be_visible()
    assert barriers(page) == []
    tabs.complaints.clear()
