"""examples/quiz: a host, phones, a team that comes late, answers in time and too late."""

import re
import secrets
from collections.abc import Iterator
from typing import NamedTuple

import httpx
import pytest
from lockstep_client import Lockstep, mint_token
from playwright.sync_api import Locator, Page, expect

from tests.support.examples import example
from tests.support.pages import Tabs, barriers, clean_tabs
from tests.support.profiles import Profiles


class Example(NamedTuple):
    """The quiz, its Lockstep on virtual time."""

    url: str
    secret: str

    def let_time_pass(self, quiz: str, ms: int) -> None:
        lockstep = httpx.get(f"{self.url}/api/quizzes/{quiz}").json()["lockstep"]
        answer = httpx.post(
            f"{lockstep}/v1/time/advance",
            json={"ms": ms},
            headers={"Authorization": f"Bearer {mint_token(self.secret, scope='admin')}"},
        )
        assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def quiz(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    secret_file = tmp_path_factory.mktemp("quiz") / "secret"
    secret_file.write_text(secrets.token_hex())
    with example("examples.quiz", f"--secret-file={secret_file}", "--virtual-time=yes") as url:
        yield Example(url, secret_file.read_text())


@pytest.fixture
def tabs(profiles: Profiles, quiz: Example) -> Iterator[Tabs]:
    yield from clean_tabs(profiles, quiz.url)


class Hall:
    """The host's page of a new quiz, and the phones in the hall."""

    def __init__(self, tabs: Tabs, quiz: Example) -> None:
        self.tabs = tabs
        self.quiz = quiz
        self.host = tabs.open()
        self.host.fill("[name=seconds]", "20")
        self.host.click("text=Open the doors")
        expect(self.host.locator("#number")).to_have_text("It begins soon")

    def let_time_pass(self, ms: int) -> None:
        self.quiz.let_time_pass(re.findall("quiz=([0-9a-f-]+)", self.host.url)[0], ms)

    def join(self, name: str) -> Page:
        phone = self.tabs.open(self.host.locator("#join").get_attribute("href") or "", apart=True)
        phone.fill("[name=name]", name)
        phone.click("text=Join")
        expect(phone.locator("#play")).to_be_visible()
        return phone

    def ask(self, question: str) -> None:
        self.host.fill("#next", question)
        self.host.click("#go")
        expect(self.host.locator("#question")).to_have_text(question)

    def team(self, name: str) -> Locator:
        return self.host.locator("#teams li").filter(has_text=name)


def answer(phone: Page, text: str) -> None:
    phone.fill("[name=answer]", text)
    phone.click("text=Send")


def test_a_quiz_from_its_first_question_to_its_end(tabs: Tabs, quiz: Example) -> None:
    hall = Hall(tabs, quiz)
    assert hall.host.locator("#qr path").get_attribute("d")
    reds = hall.join("Reds")
    expect(hall.team("Reds").locator(".here")).to_be_visible()
    hall.ask("The capital of Norway?")
    expect(reds.locator("#question")).to_have_text("The capital of Norway?")
    expect(reds.locator("#number")).to_have_text("Question 1")

    # A team that comes late sees the question that is being asked.
    blues = hall.join("Blues")
    expect(blues.locator("#number")).to_have_text("Question 1")
    expect(blues.locator("#question")).to_have_text("The capital of Norway?")
    expect(hall.team("Blues").locator(".here")).to_be_visible()

    answer(reds, "Oslo")
    expect(reds.locator("#said")).to_have_text("Your answer is in.")
    expect(hall.team("Reds")).to_contain_text("has answered")
    expect(hall.team("Blues")).not_to_contain_text("has answered")
    expect(hall.host.locator("#answers-part")).to_be_hidden()

    hall.let_time_pass(20_000)
    for page in (hall.host, reds, blues):
        expect(page.locator("#number")).to_have_text("Question 1: time is up")
        expect(page.locator("#clock")).to_have_text("0:00")
    expect(blues.locator("#answer")).to_be_hidden()

    # What the host says of an answer is a point on that team's phone, until he says otherwise.
    hall.host.click("[aria-label='Reds is right']")
    expect(reds.locator("#points")).to_have_text("Reds: 1 point")
    expect(hall.team("Reds")).to_contain_text("1 point")

    hall.ask("And of Peru?")
    expect(blues.locator("#number")).to_have_text("Question 2")
    expect(blues.locator("#answer")).to_be_visible()
    hall.host.click("#finish")
    expect(reds.locator("#number")).to_have_text("The quiz is over")


def test_an_answer_after_the_end_of_the_time_does_not_count(tabs: Tabs, quiz: Example) -> None:
    hall = Hall(tabs, quiz)
    reds = hall.join("Reds")
    hall.ask("Six times seven?")
    expect(reds.locator("#answer")).to_be_visible()
    reds.fill("[name=answer]", "42")
    # The phone does not hear that time is up, and sends what was typed in.
    reds.evaluate("() => { window.sendLate = () => document.querySelector('#answer').requestSubmit(); }")
    hall.let_time_pass(20_000)
    expect(hall.host.locator("#number")).to_have_text("Question 1: time is up")
    tabs.complaints.clear()
    reds.evaluate("() => sendLate()")
    expect(reds.locator("#error")).to_have_text("Too late")
    assert [text for text in tabs.complaints if "400" not in text] == []
    tabs.complaints.clear()
    expect(hall.team("Reds")).not_to_contain_text("has answered")


def test_an_answer_that_came_in_a_pause_can_be_given_again_after_it(quiz: Example) -> None:
    made = httpx.post(f"{quiz.url}/api/quizzes", json={"title": "Quiz", "seconds": 20}).json()
    address = f"{quiz.url}/api/quizzes/{made['quiz']}"
    shown = httpx.get(address).json()
    team = httpx.post(f"{address}/teams", json={"name": "Reds"}).json()

    def answer() -> httpx.Response:
        headers = {"Authorization": f"Bearer {team['token']}"}
        return httpx.post(f"{address}/answers", json={"question": 1, "answer": "42"}, headers=headers)

    with Lockstep(shown["lockstep"], token=made["token"]) as host:
        host.command(made["quiz"], "start", {"participant_id": shown["host"]})
        host.command(made["quiz"], "pause")
        assert answer().json() == {"error": "Too late"}
        host.command(made["quiz"], "resume")
        assert (answer().status_code, answer().status_code) == (201, 200)


def test_a_reload_is_the_same_team_and_its_answer_stays(tabs: Tabs, quiz: Example) -> None:
    hall = Hall(tabs, quiz)
    reds = hall.join("Reds")
    hall.ask("Who wrote Emma?")
    answer(reds, "Austen")
    expect(reds.locator("#said")).to_have_text("Your answer is in.")
    reds.reload()
    expect(reds.locator("#said")).to_have_text("Your answer is in.")
    expect(hall.team("Reds")).to_have_count(1)


def test_a_phone_that_goes_is_shown_as_away_and_keeps_its_points(tabs: Tabs, quiz: Example) -> None:
    hall = Hall(tabs, quiz)
    reds = hall.join("Reds")
    expect(hall.team("Reds").locator(".here")).to_be_visible()
    reds.close()
    expect(hall.team("Reds").locator(".away")).to_be_visible(timeout=15_000)


def test_a_taken_name_is_refused_with_a_word(tabs: Tabs, quiz: Example) -> None:
    hall = Hall(tabs, quiz)
    hall.join("Reds")
    phone = tabs.open(hall.host.locator("#join").get_attribute("href") or "")
    phone.fill("[name=name]", "reds")
    phone.click("text=Join")
    expect(phone.locator("#error")).to_have_text("There is a team called reds already")
    assert all(re.search("400", text) for text in tabs.complaints)
    tabs.complaints.clear()


def test_axe_finds_no_barrier_in_the_quiz(tabs: Tabs, quiz: Example) -> None:
    hall = Hall(tabs, quiz)
    reds = hall.join("Reds")
    hall.ask("The capital of Norway?")
    answer(reds, "Oslo")
    expect(reds.locator("#said")).to_have_text("Your answer is in.")
    hall.let_time_pass(20_000)
    expect(hall.host.locator("#answers li")).to_have_count(1)
    for page in (hall.host, reds):
        assert barriers(page) == []
