"""The chess example, as people start it: two players and a spectator in headless Chromium."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import pytest
from lockstep_client import Lockstep
from playwright.sync_api import Page, expect

from tests.support.cable import Cable
from tests.support.examples import example
from tests.support.front_ends import built
from tests.support.pages import Tabs, barriers
from tests.support.processes import ROOT
from tests.support.profiles import Profiles
from tests.support.tokens import SECRET, token

# The client waits longer from attempt to attempt.
BACK_WITHIN_MS = 30_000
SCHOLARS_MATE = ["e2e4", "e7e5", "d1h5", "b8c6", "f1c4", "g8f6", "h5f7"]


@pytest.fixture(scope="module")
def chess(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The example's address. Its clocks stand still but for `advance`."""
    folder = tmp_path_factory.mktemp("chess")
    (folder / "secret").write_text(SECRET)
    options = [
        f"--pages={built(ROOT / 'examples' / 'chess' / 'web', folder)}",
        f"--secret-file={folder / 'secret'}",
        "--virtual-time=yes",
        # Where no time passes, all moves are made within one second.
        "--rate-limit-switch=0",
    ]
    with example("examples.chess", *options) as url:
        yield url


class Seats(Tabs):
    """The players' tabs and the spectators', kept from test to test: opening them takes most of the time."""

    def __init__(self, profiles: Profiles, url: str) -> None:
        super().__init__(profiles, url)
        self._kept: dict[str, Page] = {}

    def take(self, who: str, link: str) -> Page:
        page = self._kept.get(who) or self.open("about:blank", apart=True)
        self._kept[who] = page
        page.goto(link)
        return page

    def leave(self) -> None:
        """Close the others."""
        self.close(*(page.context for page in self._kept.values()))
        for page in self._kept.values():
            page.goto("about:blank")


@pytest.fixture(scope="module")
def seats(profiles: Profiles, chess: str) -> Iterator[Seats]:
    seats = Seats(profiles, chess)
    yield seats
    seats.close()


@pytest.fixture
def tabs(seats: Seats) -> Iterator[Seats]:
    yield seats
    seats.leave()
    complaints = seats.complaints[:]
    seats.complaints.clear()
    assert complaints == []


@dataclass
class Game:
    """A new game: its links, and tabs and requests by them."""

    tabs: Seats
    links: dict[str, str]

    @classmethod
    def new(cls, tabs: Seats) -> "Game":
        body = {"time_ms": 300_000, "increment_ms": 3_000}
        return cls(tabs, httpx.post(f"{tabs.url}/api/games", json=body).json())

    def open(self, who: str) -> Page:
        page = self.tabs.take(who, self.tabs.url + self.links[who])
        expect(page.locator(".table[data-current=true]")).to_be_visible()
        return page

    def open_all(self) -> list[Page]:
        return [self.open(who) for who in self.links]

    def token_of(self, who: str) -> str:
        return self.links[who].removeprefix("/#")

    @property
    def id(self) -> str:
        return str(jwt.decode(self.token_of("white"), options={"verify_signature": False})["sid"])

    def ask(self, who: str, method: str, path: str = "", body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token_of(who)}"}
        return httpx.request(method, f"{self.tabs.url}/api/games/{self.id}{path}", json=body, headers=headers)

    def read(self) -> Any:
        return self.ask("spectators", "GET").json()

    def advance(self, ms: int) -> None:
        """Let time pass."""
        headers = {"Authorization": f"Bearer {token()}"}
        url = f"{self.read()['lockstep_url']}/v1/time/advance"
        assert httpx.post(url, json={"ms": ms}, headers=headers).status_code == 200

    def play(self, moves: list[str], start: int = 0) -> None:
        for ply, move in enumerate(moves, start):
            answer = self.ask(("white", "black")[ply % 2], "POST", "/moves", {"ply": ply, "move": move})
            assert answer.status_code == 200, answer.text


def move(page: Page, text: str) -> None:
    page.click(f"[data-square={text[:2]}]")
    page.click(f"[data-square={text[2:4]}]")


def expect_piece(page: Page, square: str, piece: str) -> None:
    expect(page.locator(f"[data-square={square}]")).to_have_attribute("data-piece", piece)


def expect_running(page: Page, name: str) -> None:
    expect(page.locator(f".player[aria-label^={name}] .clock")).to_have_attribute("data-running", "true")


def expect_said(page: Page, text: str) -> None:
    expect(page.get_by_role("status")).to_have_text(text)


def test_a_game_is_made_and_its_links_are_seats(tabs: Seats) -> None:
    page = tabs.open()
    page.get_by_label("3 + 2").check()
    page.get_by_role("button", name="New game").click()
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Black").click()
    seat = popup.value
    expect(seat.get_by_text("Black (you)")).to_be_visible()
    expect(seat.locator(".clock").first).to_have_text("3:00")


def test_a_legal_move_presses_the_clock_and_shows_everywhere(tabs: Seats) -> None:
    pages = Game.new(tabs).open_all()
    white, black, spectator = pages
    expect_said(white, "Your move. The clocks start with it")
    move(white, "e2e4")
    for page in pages:
        expect_piece(page, "e4", "P")
        expect_running(page, "Black")
    move(black, "e7e5")
    for page in pages:
        expect_piece(page, "e5", "p")
        expect_running(page, "White")
    expect_said(white, "Your move")
    expect_said(spectator, "White to move")
    expect(spectator.get_by_role("list", name="Moves")).to_have_text("e4e5")


def test_an_illegal_move_presses_nothing_and_shows_nowhere(tabs: Seats) -> None:
    game = Game.new(tabs)
    white, spectator = game.open("white"), game.open("spectators")
    before = game.read()
    move(white, "e2e5")
    expect(white.get_by_role("alert")).to_have_text("e2e5 is not a legal move")
    assert [text for text in tabs.complaints if "422" not in text] == []  # the console tells of the refusal
    tabs.complaints.clear()
    assert game.read() == before
    move(white, "e2e4")
    expect_piece(spectator, "e4", "P")
    expect_piece(spectator, "e5", "")
    expect(white.get_by_role("alert")).to_be_empty()


def test_scholars_mate_ends_the_game_and_a_reload_keeps_everything(tabs: Seats) -> None:
    game = Game.new(tabs)
    pages = game.open_all()
    game.play(SCHOLARS_MATE[:3])
    for page in pages[1:]:
        page.reload()
        expect_piece(page, "h5", "Q")
        expect_running(page, "Black")
    for ply, text in enumerate(SCHOLARS_MATE[3:], 3):
        expect_said(pages[ply % 2], "Your move")
        move(pages[ply % 2], text)
    for page in pages:
        expect_said(page, "1-0 · White wins: checkmate")
    pages[2].reload()
    for page in pages:
        expect_said(page, "1-0 · White wins: checkmate")
        expect_piece(page, "f7", "Q")
        expect(page.locator(".clock[data-running=true]")).to_have_count(0)
        expect(page.get_by_role("listitem")).to_have_text(["e4e5", "Qh5Nc6", "Bc4Nf6", "Qxf7#"])


def test_a_clock_that_runs_out_ends_the_game(tabs: Seats) -> None:
    game = Game.new(tabs)
    pages = game.open_all()
    game.play(["e2e4"])
    game.advance(300_000)
    for page in pages:
        expect_said(page, "1-0 · White wins: time")
        expect(page.locator(".player[aria-label^=Black] .clock")).to_have_text("0:00.0")
    late = game.ask("black", "POST", "/moves", {"ply": 1, "move": "e7e5"})
    assert (late.status_code, late.json()["error"]["code"]) == (409, "GAME_OVER")


def test_who_resigns_has_lost(tabs: Seats) -> None:
    game = Game.new(tabs)
    black, spectator = game.open("black"), game.open("spectators")
    expect(spectator.get_by_role("button", name="Resign")).to_have_count(0)
    black.get_by_role("button", name="Resign").click()
    expect_said(spectator, "1-0 · White wins: resignation")


def test_a_pawn_becomes_what_its_player_chooses(tabs: Seats) -> None:
    game = Game.new(tabs)
    white, spectator = game.open("white"), game.open("spectators")
    game.play(["e2e4", "d7d5", "e4d5", "c7c6", "d5c6", "a7a6", "c6b7", "a6a5"])
    expect_said(white, "Your move")
    move(white, "b7a8")
    white.get_by_role("group", name="Promote to").get_by_role("button", name="knight").click()
    expect_piece(spectator, "a8", "N")


def test_a_move_can_be_made_by_keyboard(tabs: Seats) -> None:
    page = Game.new(tabs).open("white")
    page.locator("[data-square=e2]").focus()
    for key in ("Enter", "ArrowUp", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    expect_piece(page, "e4", "P")


def test_who_is_here_has_a_dot(tabs: Seats) -> None:
    game = Game.new(tabs)
    white = game.open("white")
    dots = white.locator(".player .presence")
    expect(dots.first).to_have_attribute("aria-label", "away")
    game.open("black")
    expect(dots.first).to_have_attribute("aria-label", "here")
    game.open("spectators")
    expect(white.get_by_text("1 watching")).to_be_visible()


def test_a_lost_connection_is_told_and_mended(tabs: Seats) -> None:
    game = Game.new(tabs)
    game.play(["e2e4"])
    lockstep_url = game.read()["lockstep_url"]
    with closing(Cable(int(lockstep_url.rpartition(":")[2]))) as cable:
        white = tabs.open("about:blank", apart=True)
        by_cable = f"""window.WebSocket = class extends WebSocket {{
            constructor(url, protocols) {{
                super(url.replace("{lockstep_url[5:]}", "{cable.url[5:]}"), protocols);
            }}
        }}"""
        white.add_init_script(by_cable)
        cable.pull()
        white.goto(tabs.url + game.links["white"])
        for ply, (reply, square) in enumerate((("e7e5", "e5"), ("g1f3", "f3")), 1):
            # The first is missed by who has no state yet, and read from the history; the second is caught up.
            expect(white.get_by_role("alert")).to_contain_text("No connection")
            game.play([reply], start=ply)
            cable.plug_in()
            expect(white.get_by_role("alert")).to_be_empty(timeout=BACK_WITHIN_MS)
            expect_piece(white, square, "p" if ply == 1 else "N")
            cable.pull()
        white.close()
    tabs.complaints.clear()  # the console tells of attempts that failed


def test_only_the_player_whose_turn_it_is_moves(tabs: Seats) -> None:
    game = Game.new(tabs)
    first = {"ply": 0, "move": "e2e4"}
    assert game.ask("black", "POST", "/moves", first).json()["error"]["code"] == "NOT_YOUR_TURN"
    assert game.ask("spectators", "POST", "/moves", first).json()["error"]["code"] == "FORBIDDEN"
    stranger = {"Authorization": f"Bearer {Game.new(tabs).token_of('white')}"}
    address = f"{tabs.url}/api/games/{game.id}"
    assert httpx.post(f"{address}/moves", json=first, headers=stranger).status_code == 403
    assert httpx.post(f"{address}/moves", json=first).status_code == 401
    assert game.read()["version"] == 1


def test_a_move_that_is_sent_again_is_made_once(tabs: Seats) -> None:
    game = Game.new(tabs)
    game.play(["e2e4"])
    game.play(["e2e4"])
    game.play(["e7e5"], start=1)
    game.play(["e2e4"])
    assert [each["move"] for each in game.read()["moves"]] == ["e2e4", "e7e5"]
    other = game.ask("white", "POST", "/moves", {"ply": 0, "move": "d2d4"})
    assert other.json()["error"]["code"] == "NOT_YOUR_TURN"


def test_a_press_around_the_back_end_loses(tabs: Seats) -> None:
    game = Game.new(tabs)
    black = game.open("black")
    game.play(["e2e4", "e7e5"])
    with Lockstep(game.read()["lockstep_url"], token=game.token_of("white")) as lockstep:
        lockstep.command(game.id, "switch")
    expect_said(black, "0-1 · Black wins: a press without a legal move")


def test_a_bad_body_is_refused(tabs: Seats) -> None:
    game = Game.new(tabs)
    for body in (
        None,
        [],
        {},
        {"ply": "0", "move": "e2e4"},
        {"ply": True, "move": "e2e4"},
        {"ply": 0, "move": 1},
    ):
        assert game.ask("white", "POST", "/moves", body).status_code == 400
    assert game.ask("white", "POST", "/moves", {"ply": -1, "move": "e2e4"}).status_code == 409
    for body in ({}, {"time_ms": 10, "increment_ms": 0}, {"time_ms": 60_000, "increment_ms": -1}):
        assert httpx.post(f"{tabs.url}/api/games", json=body).status_code == 400


def test_nothing_on_the_board_keeps_people_out(tabs: Seats) -> None:
    game = Game.new(tabs)
    white = tabs.open(tabs.url + game.links["white"])
    game.play(["e2e4", "e7e5"])
    expect_said(white, "Your move")
    assert barriers(white) == []
