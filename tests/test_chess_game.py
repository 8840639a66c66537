"""A game of the chess example, from the history of its session; and the same in the browser."""

import random
from collections.abc import Iterable
from typing import Any, cast

from lockstep_client.types import HistoryEvent

from examples.chess.game import MAX_MOVES, Game, game_of
from examples.chess.rules import START, Move, Position, legal_moves, play
from tests.support.node import run_js
from tests.support.processes import ROOT

SQUARES = ROOT / "examples" / "chess" / "web" / "src" / "squares.ts"
WHITE, BLACK = "w", "b"
LOYDS_STALEMATE = (
    "e2e3 a7a5 d1h5 a8a6 h5a5 h7h5 h2h4 a6h6 a5c7 f7f6 c7d7 e8f7 d7b7 d8d3 b7b8 d3h7 b8c8 f7g6 c8e6"
)


def game(moves: Iterable[str], *others: dict[str, Any]) -> Game:
    """Of a session in which these moves were made, and then something else happened."""
    participants = [{"participant_id": each, "has_expired": False} for each in (WHITE, BLACK)]
    created = {"type": "created", "changes": {"status": "running", "participants": participants}}
    presses = [press(move=move, san="") for move in moves]
    return game_of(cast(list[HistoryEvent], [created, *presses, *others]))


def press(**data: Any) -> dict[str, Any]:
    return {"type": "switched", "data": data, "changes": {}}


def test_mate_is_lost_by_who_has_no_move() -> None:
    assert game(["f2f3", "e7e5", "g2g4", "d8h4"]).outcome == {"result": "0-1", "reason": "checkmate"}


def test_stalemate_is_a_draw() -> None:
    assert game(LOYDS_STALEMATE.split()).outcome == {"result": "1/2-1/2", "reason": "stalemate"}


def test_a_press_without_a_legal_move_loses() -> None:
    for done in (press(), press(move="e7e4"), {"type": "switched", "changes": {}}):
        played = game(["e2e4"], done, press(move="d2d4", san="d4"))
        assert played.outcome == {"result": "1-0", "reason": "a press without a legal move"}
        assert [each["move"] for each in played.moves] == ["e2e4"]


def test_a_press_after_stalemate_is_still_a_draw() -> None:
    outcome = game(LOYDS_STALEMATE.split(), press(move="g6h6")).outcome
    assert outcome == {"result": "1/2-1/2", "reason": "stalemate"}


def test_who_runs_out_of_time_has_lost() -> None:
    late = [{"participant_id": BLACK, "has_expired": True}]
    expired = {"type": "expired", "changes": {"status": "expired", "participants": late}}
    played = game(["e2e4"], expired)
    assert played.outcome == {"result": "1-0", "reason": "time"}
    assert played.has_ended


def test_what_the_end_says_counts() -> None:
    resigned = {"result": "0-1", "reason": "resignation"}
    assert game([], {"type": "completed", "data": resigned, "changes": {}}).outcome == resigned


def test_a_game_ends_before_its_first_moves_are_forgotten() -> None:
    there_and_back = ["g1f3", "g8f6", "f3g1", "f6g8"] * (MAX_MOVES // 4)
    assert game(there_and_back[:-1]).outcome is None
    assert game(there_and_back).outcome == {"result": "1/2-1/2", "reason": f"{MAX_MOVES} moves"}


def test_a_page_believes_no_press_that_tells_no_move() -> None:
    """A player can press around the back end, with any data: nothing of it may stop the other's page."""
    extended = SQUARES.with_name("extended.ts")
    good = {"move": "e2e4", "san": "e4"}
    script = """
        const { extended } = await import(args[0]);
        const game = { version: 2, moves: [], legal_moves: [], outcome: null, players: ["w", "b"] };
        const pressed = (data) => extended(game, { version: 3, type: "switched", data }, {});
        const told = args[1].map((data) => pressed(data ?? undefined));
        return told.map(({ version, moves }) => [version, moves]);
    """
    bad = [None, {}, {"move": "e2e4"}, good | {"san": {"a": 1}}, good | {"san": ["e4"]}, good | {"move": 7}]
    assert run_js(script, extended.as_uri(), [good, *bad]) == [[3, [good]], *[[2, []]] * len(bad)]


def is_special(position: Position, move: Move) -> bool:
    """Castling, promotion or taking in passing."""
    piece = position.board[move.origin]
    castles = piece in "Kk" and abs(move.target - move.origin) == 2
    return castles or bool(move.promotion) or (piece in "Pp" and move.target == position.en_passant)


def test_a_page_shows_what_stands_on_the_board() -> None:
    """In Node, over games at random in which what is special is done as soon as it can be."""
    chance = random.Random(1)
    games, boards, specials = [], [], set()
    for _ in range(15):
        position, moves, shown = START, [], []
        while len(moves) < 100 and (legal := legal_moves(position)):
            special = [move for move in legal if is_special(position, move)]
            specials.update((position.board[move.origin], move.target % 8) for move in special)
            others = [move for move in legal if position.board[move.origin] not in "Kk"]
            move = chance.choice(special or others or legal)
            position = play(position, move)
            moves.append(str(move))
            shown.append(position.board.replace(".", " "))
        games.append(moves)
        boards.append(shown)
    script = """
        const { played, START } = await import(args[0]);
        const text = (board) => board.map((piece) => piece || " ").join("");
        const boards = (moves, board = START) => moves.map((move) => text((board = played(board, move))));
        return args[1].map((moves) => boards(moves));
    """
    assert run_js(script, SQUARES.as_uri(), games) == boards
    assert {("K", 6), ("K", 2), ("k", 6), ("k", 2)} <= specials
