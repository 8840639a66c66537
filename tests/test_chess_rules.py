"""The rules of the chess example, counted against what is known of five positions."""

import pytest

from examples.chess.rules import START, Move, Position, is_check, legal_moves, play, san

# How many lines of play of one, two, three moves there are: the figures (perft) that chess programs agree on.
KNOWN = {
    "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq -": [20, 400, 8_902],
    "r3k2r/p1ppqpb1/bn2pnp1/3PN3/1p2P3/2N2Q1p/PPPBBPPP/R3K2R w KQkq -": [48, 2_039],
    "8/2p5/3p4/KP5r/1R3p1k/8/4P1P1/8 w - -": [14, 191, 2_812],
    "r3k2r/Pppp1ppp/1b3nbN/nP6/BBP1P3/q4N2/Pp1P2PP/R2Q1RK1 w kq -": [6, 264],
    "rnbq1k1r/pp1Pbppp/2p5/8/2B5/8/PPP1NnPP/RNBQK2R w KQ -": [44, 1_486],
}


def lines(position: Position, length: int) -> int:
    moves = legal_moves(position)
    return len(moves) if length == 1 else sum(lines(play(position, move), length - 1) for move in moves)


def move_of(position: Position, text: str) -> Move:
    return next(move for move in legal_moves(position) if str(move) == text)


def after(*moves: str, position: Position = START) -> Position:
    for text in moves:
        position = play(position, move_of(position, text))
    return position


@pytest.mark.parametrize("fen", KNOWN)
def test_there_are_as_many_lines_of_play_as_are_known(fen: str) -> None:
    assert [lines(Position.from_fen(fen), n + 1) for n in range(len(KNOWN[fen]))] == KNOWN[fen]


def test_scholars_mate_is_check_without_a_legal_move() -> None:
    mated = after("e2e4", "e7e5", "d1h5", "b8c6", "f1c4", "g8f6", "h5f7")
    assert is_check(mated)
    assert legal_moves(mated) == []


def test_stalemate_is_no_legal_move_without_check() -> None:
    position = Position.from_fen("7k/5Q2/6K1/8/8/8/8/8 b - -")
    assert not is_check(position)
    assert legal_moves(position) == []


def test_a_pawn_is_taken_in_passing_at_once_or_never() -> None:
    position = after("e2e4", "a7a6", "e4e5", "d7d5")
    taken = after("e5d6", position=position)
    assert taken.board[8 * 4 + 3] == "."
    assert "e5d6" not in [str(move) for move in legal_moves(after("h2h3", "h7h6", position=position))]


def test_a_king_castles_with_its_rook() -> None:
    position = Position.from_fen("r3k2r/8/8/8/8/8/8/R3K2R w KQkq -")
    assert after("e1g1", position=position).board.startswith("R....RK.")
    assert after("e1c1", position=position).board.startswith("..KR...R")


@pytest.mark.parametrize(
    ("fen", "move", "written"),
    [
        ("rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq -", "g1f3", "Nf3"),
        ("4k3/8/8/3p4/4P3/8/8/4K3 w - -", "e4d5", "exd5"),
        ("4k3/8/8/8/8/8/8/R3K2R w KQ -", "e1g1", "O-O"),
        ("3k4/8/8/8/8/8/8/R3K3 w Q -", "e1c1", "O-O-O+"),
        ("8/4P1k1/8/8/8/8/8/4K3 w - -", "e7e8n", "e8=N+"),
        ("7k/8/8/8/8/8/4R3/K3R3 w - -", "e1d1", "Rd1"),
        ("7k/8/8/8/3R4/8/8/K2R4 w - -", "d4d2", "R4d2"),
        ("7k/8/8/8/8/8/8/RK5R w - -", "h1d1", "Rd1"),
        ("8/7k/8/8/8/8/K7/R4R2 w - -", "a1d1", "Rad1"),
        ("8/7k/8/8/Q2Q4/8/8/Q5K1 w - -", "a4d1", "Qa4d1"),
        ("6k1/5ppp/8/8/8/8/8/R5K1 w - -", "a1a8", "Ra8#"),
    ],
)
def test_a_move_is_written_as_on_a_scoresheet(fen: str, move: str, written: str) -> None:
    position = Position.from_fen(fen)
    assert san(position, move_of(position, move)) == written
