"""What the page lets hear and feel as time runs low, and at zero."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.support.node import run_js
from tests.support.pages import RUNS, Tabs, clean_tabs
from tests.support.processes import ROOT, ServerProcess
from tests.support.profiles import Profiles

LOW_MS = 20_000  # of ten minutes
LOW, ZERO = [120, 80, 120], [400, 120, 400]  # as vibrations
# What is felt and heard is kept: the vibrations, and how many tones have begun by each.
RECORDS = """
    window.felt = [], window.tones = 0;
    navigator.vibrate = (pattern) => felt.push(pattern);
    const start = OscillatorNode.prototype.start;
    OscillatorNode.prototype.start = function (...when) { tones++; start.apply(this, when); };
"""


@pytest.fixture
def tabs(profiles: Profiles, server_process: ServerProcess) -> Iterator[Tabs]:
    yield from clean_tabs(profiles, server_process.url)


def recording(tabs: Tabs, body: dict[str, Any]) -> Page:
    page = tabs.open_session(body)
    page.add_init_script(RECORDS)
    page.reload()
    expect(page.locator("#session")).to_be_visible()
    return page


def also_open(context: BrowserContext, url: str) -> Page:
    """In the same profile, and not looked at: a tab that has the focus would not wait for another."""
    page = context.new_page()
    page.add_init_script(RECORDS + "Document.prototype.hasFocus = () => false;")
    page.goto(url)
    expect(page.locator("#session")).to_be_visible()
    return page


def countdown(seconds: int) -> dict[str, Any]:
    return {
        "sync_mode": "global",
        "total_time_ms": 1000 * seconds,
        "on_timeout": "flag",
        "participants": [],
    }


def is_over(page: Page) -> None:
    expect(page.locator("#status")).to_have_text("Time is up")


def adjust(page: Page, delta_ms: int) -> None:
    url = page.url.replace("?session=", "v1/sessions/") + "/adjust"
    assert page.request.post(url, data={"delta_ms": delta_ms}).ok


def felt(page: Page) -> Any:
    return page.evaluate("felt")


def test_nothing_is_heard_that_was_not_asked_for(tabs: Tabs) -> None:
    page = recording(tabs, countdown(1))
    expect(page.locator("#sound")).to_have_attribute("aria-pressed", "false")
    page.click("#primary")
    is_over(page)
    assert page.evaluate("[felt, tones]") == [[], 0]


def test_low_time_and_zero_are_heard_in_one_of_two_tabs(tabs: Tabs) -> None:
    page = recording(tabs, countdown(600))
    page.get_by_role("button", name="Sound as time runs low").click()
    expect(page.locator("#sound")).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("[felt, tones]") == [[LOW], 2], "what will be heard is heard once"
    other = also_open(page.context, page.url)
    expect(other.locator("#sound")).to_have_attribute("aria-pressed", "true")  # it is remembered
    page.click("#primary")
    expect(page.locator(RUNS)).to_be_visible()
    adjust(page, LOW_MS + 1_500 - 600_000)
    for _ in range(1000):
        if len(felt(page) + felt(other)) == 2:
            break
        page.wait_for_timeout(10)
    adjust(page, -60_000)
    for tab in (page, other):
        is_over(tab)
    # Behind the timer by which that one has waited for the other.
    other.evaluate("new Promise((done) => setTimeout(done, 200))")
    assert sorted(felt(page) + felt(other)) == [LOW, LOW, ZERO]
    assert page.evaluate("tones") + other.evaluate("tones") == 7
    page.click("#sound")
    page.reload()
    expect(page.locator("#sound")).to_have_attribute("aria-pressed", "false")


STATE: dict[str, Any] = {
    "deadline_ms": 100_000,
    "sync_mode": "per_participant",
    "participants": [{"is_active": False, "budget_ms": 5_000}, {"is_active": True, "budget_ms": 60_000}],
    "time_per_cycle_ms": 30_000,
    "total_time_ms": 3_600_000,
}


@pytest.mark.parametrize(
    ("fields", "low_ms"),
    [
        ({}, 88_000),  # a fifth of what the active one began with
        ({"sync_mode": "per_group"}, 88_000),
        ({"sync_mode": "per_cycle"}, 94_000),
        ({"sync_mode": "global"}, 80_000),  # and at most 20 s
        ({"sync_mode": "count_up"}, None),
    ],
)
def test_a_clock_is_heard_when_it_looks_low_and_at_its_deadline(
    fields: dict[str, Any], low_ms: int | None
) -> None:
    cues = run_js(
        "return (await import(args[0])).cuesOf(args[1]);",
        (ROOT / "handlers" / "page" / "cues.js").as_uri(),
        STATE | fields,
    )
    low = [] if low_ms is None else [{"kind": "low", "atMs": low_ms}]
    assert cues == [*low, {"kind": "zero", "atMs": 100_000}]
