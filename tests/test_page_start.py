"""The form on the start page, in headless Chromium: names, times and how many."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.support.pages import SMALL_PHONE, Tabs, clean_tabs
from tests.support.processes import ServerProcess
from tests.support.profiles import Profiles


@pytest.fixture
def tabs(profiles: Profiles, server_process: ServerProcess) -> Iterator[Tabs]:
    yield from clean_tabs(profiles, server_process.url)


def show_form(page: Page, kind: str) -> None:
    page.get_by_text("Your own names").click()
    page.get_by_label("Kind").select_option(kind)


def made(page: Page) -> dict[str, Any]:
    """The state of what the form makes."""
    page.get_by_role("button", name="Make this clock").click()
    expect(page.locator("#session")).to_be_visible()
    answer = page.request.get(page.url.replace("?session=", "v1/sessions/"))
    state: dict[str, Any] = answer.json()["data"]
    return state


def names(state: dict[str, Any]) -> list[str]:
    return [state["metadata"]["names"][each["participant_id"]] for each in state["participants"]]


def test_the_form_is_filled_in_by_keyboard_alone(tabs: Tabs) -> None:
    page = tabs.open()
    page.locator("summary").focus()
    page.keyboard.press("Enter")
    for text in ("The s", "Pub quiz", "1", "30", "5", "Reds\nBlues\n"):  # kind, title, min, s, teams, names
        page.keyboard.press("Tab")
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type(text)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("Pub quiz")
    expect(page.locator(".face")).to_have_text("1:30")
    expect(page.locator(".chip")).to_have_text(["Reds", "Blues", "Team C", "Team D", "Team E", "+ Team"])


def test_each_kind_is_made_as_its_fields_say(tabs: Tabs) -> None:
    page = tabs.open()
    show_form(page, "chess")
    page.get_by_label("Players").fill("3")
    page.get_by_role("spinbutton", name="Seconds added per move").fill("7")
    state = made(page)
    assert names(state) == ["Player 1", "Player 2", "Player 3"]
    assert (state["increment_ms"], state["participants"][2]["budget_ms"]) == (7_000, 600_000)

    page.goto(tabs.url)
    show_form(page, "debate")
    page.get_by_label("Names, one a line").fill("Yes: Ann, Ben , Cleo\nNo\n")
    page.get_by_label("Teams").fill("3")
    state = made(page)
    assert names(state) == ["Ann", "No 1", "Team C 1", "Ben", "No 2", "Team C 2", "Cleo"]
    assert [page.locator(".panel .name").nth(n).text_content() for n in range(3)] == ["Yes", "No", "Team C"]

    page.goto(tabs.url)
    show_form(page, "exam")
    expect(page.get_by_label("Names, one a line")).to_be_hidden()
    page.get_by_role("spinbutton", name="min").fill("0")
    page.get_by_role("spinbutton", name="s", exact=True).fill("50")
    state = made(page)
    assert (state["total_time_ms"], state["participants"]) == (50_000, [])

    page.goto(tabs.url)
    show_form(page, "speedrun")
    page.get_by_label("Title").fill("Any %")
    assert made(page)["metadata"]["title"] == "Any %"


def test_more_names_are_more_teams(tabs: Tabs) -> None:
    page = tabs.open()
    show_form(page, "quiz")
    page.get_by_label("Names, one a line").fill("\n".join("ABCDEF"))
    expect(page.get_by_label("Teams")).to_have_value("6")
    page.get_by_label("Names, one a line").fill("A")
    expect(page.get_by_label("Teams")).to_have_value("6")


def test_a_clock_without_time_is_not_made(tabs: Tabs) -> None:
    page = tabs.open(viewport=SMALL_PHONE)
    show_form(page, "exam")
    assert page.evaluate("document.documentElement.scrollWidth") == SMALL_PHONE["width"]
    minutes = page.get_by_role("spinbutton", name="min")
    minutes.fill("0")
    page.get_by_role("button", name="Make this clock").click()
    expect(minutes).to_be_focused()
    assert minutes.evaluate("(field) => field.validationMessage") == "A clock begins with a second or more."
    minutes.fill("1")
    assert made(page)["total_time_ms"] == 60_000
