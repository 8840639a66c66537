"""The page in headless Chromium: who is here, where a session has presence."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.support.pages import RUNS, SMALL_PHONE, Tabs, barriers, clean_tabs
from tests.support.processes import ServerProcess, running
from tests.support.profiles import Profiles
from tests.support.tokens import SECRET, token

PEOPLE = {"Ann": str(uuid.uuid4()), "Ben": str(uuid.uuid4())}
GROUP = str(uuid.uuid4())


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    secret: Path = tmp_path_factory.mktemp("keys") / "secret"
    secret.write_text(SECRET)
    options = (f"--jwt-secret-file={secret}", "--anonymous=view", "--log-level=warning")
    with running(ServerProcess(*options)) as server:
        yield server


@pytest.fixture
def tabs(profiles: Profiles, server_process: ServerProcess) -> Iterator[Tabs]:
    """On a server without keys."""
    yield from clean_tabs(profiles, server_process.url)


@pytest.fixture
def named_tabs(profiles: Profiles, guarded: ServerProcess) -> Iterator[Tabs]:
    """On a server with keys, which lets anybody watch."""
    yield from clean_tabs(profiles, guarded.url)


def created(tabs: Tabs, mode: str = "per_participant", **fields: Any) -> str:
    """A session of PEOPLE that has presence; its path with the API."""
    body: dict[str, Any] = {
        "sync_mode": mode,
        "presence": True,
        "participants": [{"participant_id": each, "total_time_ms": 3_600_000} for each in PEOPLE.values()],
        "metadata": {"title": "A game", "names": {id_: name for name, id_ in PEOPLE.items()}},
    }
    if mode == "per_group":
        body["participants"] = [each | {"group_id": GROUP} for each in body["participants"]]
    headers = {"Authorization": f"Bearer {token()}"}
    answer = httpx.post(f"{tabs.url}/v1/sessions", json=body | fields, headers=headers)
    return str(answer.json()["data"]["session_id"])


def open_as(tabs: Tabs, session_id: str, subject: str | None, **options: Any) -> Page:
    end = "" if subject is None else f"#token={token('control', sub=subject)}"
    page = tabs.open(f"{tabs.url}/?session={session_id}{end}", **options)
    expect(page.locator("#session")).to_be_visible()
    return page


def presence(page: Page) -> Any:
    return expect(page.locator("#presence"))


def dots(page: Page) -> dict[str, str | None]:
    marked = page.locator("[data-present]").all()
    return {str(each.text_content()): each.get_attribute("data-present") for each in marked}


def test_who_comes_is_named_and_has_a_dot(named_tabs: Tabs) -> None:
    session_id = created(named_tabs)
    # A subject is a participant in whatever case its token has it.
    page = open_as(named_tabs, session_id, PEOPLE["Ann"].upper())
    presence(page).to_have_text("Here: Ann")
    assert dots(page) == {"Ann": "true", "Ben": "false"}
    judge = open_as(named_tabs, session_id, "the judge")
    presence(page).to_have_text("Here: Ann, the judge")
    open_as(named_tabs, session_id, None)
    ben = open_as(named_tabs, session_id, PEOPLE["Ben"])
    for each in (page, judge, ben):
        presence(each).to_have_text("Here: Ann, the judge, Ben · 1 anonymous")
        presence(each).to_have_attribute("title", "Here: Ann, the judge, Ben · 1 anonymous")
        assert dots(each) == {"Ann": "true", "Ben": "true"}


def test_who_leaves_is_named_no_more_and_has_a_ring(named_tabs: Tabs) -> None:
    session_id = created(named_tabs)
    page, ben = [open_as(named_tabs, session_id, PEOPLE[name]) for name in ("Ann", "Ben")]
    presence(page).to_have_text("Here: Ann, Ben")
    ben.close()
    presence(page).to_have_text("Here: Ann")
    assert dots(page) == {"Ann": "true", "Ben": "false"}


@pytest.mark.parametrize("mode", ["per_cycle", "per_group"])
def test_where_participants_share_a_clock_each_has_a_dot(named_tabs: Tabs, mode: str) -> None:
    session_id = created(named_tabs, mode, time_per_cycle_ms=3_600_000)
    page = open_as(named_tabs, session_id, PEOPLE["Ben"])
    presence(page).to_have_text("Here: Ben")
    assert dots(page) == {"Ann": "false", "Ben": "true"}
    page.click("#primary")
    expect(page.locator(RUNS)).to_be_visible()
    assert dots(page) == {"Ann": "false", "Ben": "true"}


def test_a_clock_tells_who_is_here_where_that_was_chosen(tabs: Tabs) -> None:
    page = tabs.open()
    page.get_by_label("Show who is here").check()
    page.locator("[data-preset=chess]").first.click()
    presence(page).to_have_text("Here: 1 anonymous")
    other = tabs.also_open(page)
    for each in (page, other):
        presence(each).to_have_text("Here: 2 anonymous")
        assert dots(each) == {"White": "false", "Black": "false"}


def test_a_clock_of_which_that_was_not_chosen_tells_nothing(tabs: Tabs) -> None:
    page = tabs.create("chess")
    expect(page.locator("#link-text")).to_have_text("Connected")
    presence(page).to_be_hidden()
    assert dots(page) == {}


@pytest.mark.parametrize("size", [None, SMALL_PHONE], ids=["desk", "small phone"])
def test_nothing_moves_when_it_becomes_known_who_is_here(
    named_tabs: Tabs, size: dict[str, int] | None
) -> None:
    options = {} if size is None else {"viewport": size}
    page = open_as(named_tabs, created(named_tabs, "per_cycle", time_per_cycle_ms=9_000), None, **options)
    presence(page).to_have_text("Here: 1 anonymous")
    moved, is_as_wide_as_the_screen = page.evaluate("""() => {
        const line = document.getElementById("presence");
        const chips = [...document.querySelectorAll(".chip")];
        const parts = ["stage", "status", "primary"].map((id) => document.getElementById(id));
        const places = () => [...parts, ...chips].map((part) => JSON.stringify(part.getBoundingClientRect()));
        const before = places(), moved = [];
        const told = [["", "unknown"], ["Here: " + "Somebody, ".repeat(300), "true"], ["Here: Ä", "false"]];
        for (const [text, isPresent] of told) {
            line.textContent = text;
            for (const chip of chips) if (chip.dataset.present) chip.dataset.present = isPresent;
            const after = places();
            moved.push(...after.filter((place, index) => place !== before[index]));
        }
        return [moved, document.documentElement.scrollWidth <= innerWidth];
    }""")
    assert moved == []
    assert is_as_wide_as_the_screen


def test_text_that_subjects_bring_stays_text(named_tabs: Tabs) -> None:
    page = open_as(named_tabs, created(named_tabs), "<img src=x onerror=alert(1)>")
    presence(page).to_have_text("Here: <img src=x onerror=alert(1)>")
    assert page.locator("#presence img").count() == 0


def test_who_is_sent_away_is_told_so(named_tabs: Tabs) -> None:
    session_id = created(named_tabs)
    page, stays = [open_as(named_tabs, session_id, each) for each in ("the judge", PEOPLE["Ann"])]
    presence(page).to_have_text(re.compile("the judge"))
    path = f"{named_tabs.url}/v1/sessions/{session_id}/disconnect"
    headers = {"Authorization": f"Bearer {token()}"}
    assert page.request.post(path, data={"subject": "the judge"}, headers=headers).status == 202
    expect(page.locator("#notice-title")).to_have_text("You were sent away")
    expect(page.locator("#link-text")).to_have_text("Not connected")
    presence(stays).to_have_text("Here: Ann")
    expect(stays.locator("#link-text")).to_have_text("Connected")


def test_axe_finds_no_barrier_in_who_is_here(named_tabs: Tabs) -> None:
    page = open_as(named_tabs, created(named_tabs, "per_cycle", time_per_cycle_ms=3_600_000), PEOPLE["Ben"])
    presence(page).to_have_text("Here: Ben")
    assert barriers(page) == []
    page.click("#primary")
    expect(page.locator(RUNS)).to_be_visible()
    assert barriers(page) == []
    presence(page).to_have_attribute("aria-live", "polite")
