"""The rules of chess: which moves are legal, what they lead to, when a game is over. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

Steps = tuple[tuple[int, int], ...]

FILES = "abcdefgh"
STRAIGHT: Steps = ((1, 0), (-1, 0), (0, 1), (0, -1))
DIAGONAL: Steps = ((1, 1), (1, -1), (-1, 1), (-1, -1))
SLIDERS = {"R": STRAIGHT, "B": DIAGONAL, "Q": STRAIGHT + DIAGONAL}
LEAPERS: dict[str, Steps] = {
    "K": STRAIGHT + DIAGONAL,
    "N": ((1, 2), (2, 1), (2, -1), (1, -2), (-1, -2), (-2, -1), (-2, 1), (-1, 2)),
}
PROMOTIONS = "qrbn"


def _ray(square: int, step: tuple[int, int]) -> Iterator[int]:
    file, rank = square % 8 + step[0], square // 8 + step[1]
    while 0 <= file < 8 and 0 <= rank < 8:
        yield file + 8 * rank
        file, rank = file + step[0], rank + step[1]


# By square and step: the squares in that direction, as far as the board goes.
RAYS = {
    (square, step): tuple(_ray(square, step))
    for square in range(64)
    for step in (*STRAIGHT, *DIAGONAL, *LEAPERS["N"])
}
# A king's or rook's home: the rights to castle that are gone when something leaves it or arrives there.
HOMES = {0: "Q", 4: "KQ", 7: "K", 56: "q", 60: "kq", 63: "k"}
# By right: the king's way, and what has to be empty.
CASTLINGS = {
    "K": ((4, 5, 6), (5, 6)),
    "Q": ((4, 3, 2), (1, 2, 3)),
    "k": ((60, 61, 62), (61, 62)),
    "q": ((60, 59, 58), (57, 58, 59)),
}
ROOK_MOVES = {6: (7, 5), 2: (0, 3), 62: (63, 61), 58: (56, 59)}  # by where the king goes


def name_of(square: int) -> str:
    """a1 is 0, h1 is 7, a8 is 56."""
    return FILES[square % 8] + str(square // 8 + 1)


def square_of(name: str) -> int:
    return FILES.index(name[0]) + 8 * (int(name[1]) - 1)


class Move(NamedTuple):
    """From a square to a square. As text it is written as UCI does: e2e4, e1g1 (castling), e7e8q."""

    origin: int
    target: int
    promotion: str = ""

    def __str__(self) -> str:
        return name_of(self.origin) + name_of(self.target) + self.promotion


@dataclass(frozen=True, slots=True)
class Position:
    """A board of 64 characters, a1 first, white's pieces in capitals, "." where nothing stands."""

    board: str
    is_whites_turn: bool = True
    castling: str = "KQkq"
    en_passant: int | None = None
    """The square that a pawn has just passed over."""

    @classmethod
    def from_fen(cls, fen: str) -> "Position":
        """Of Forsyth-Edwards notation; its two counters are for draws, which are not claimed here."""
        placement, turn, castling, en_passant = fen.split()[:4]
        for digit in "12345678":
            placement = placement.replace(digit, "." * int(digit))
        board = "".join(reversed(placement.split("/")))
        passed = None if en_passant == "-" else square_of(en_passant)
        return cls(board, turn == "w", castling.replace("-", ""), passed)

    def is_own(self, square: int) -> bool:
        """True if a piece of the player whose turn it is stands there."""
        piece = self.board[square]
        return piece != "." and piece.isupper() == self.is_whites_turn


START = Position.from_fen("rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq -")


def legal_moves(position: Position) -> list[Move]:
    return [move for move in _moves(position) if not _leaves_king(position, move)]


def legal_move(position: Position, text: object) -> Move | None:
    """The move that is written so, as UCI does, if it is legal."""
    written = (move for move in _moves(position) if str(move) == text)
    return next((move for move in written if not _leaves_king(position, move)), None)


def is_check(position: Position) -> bool:
    """True if the king of the player whose turn it is stands attacked."""
    king = position.board.index("K" if position.is_whites_turn else "k")
    return is_attacked(position, king, by_white=not position.is_whites_turn)


def is_attacked(position: Position, square: int, by_white: bool) -> bool:
    board = position.board
    mine = str.upper if by_white else str.lower
    for piece, steps in LEAPERS.items():
        attacker = mine(piece)
        for step in steps:
            for near in RAYS[square, step][:1]:
                if board[near] == attacker:
                    return True
    for steps, attackers in ((STRAIGHT, mine("RQ")), (DIAGONAL, mine("BQ"))):
        for step in steps:
            for far in RAYS[square, step]:
                if board[far] != ".":
                    if board[far] in attackers:
                        return True
                    break
    behind = -1 if by_white else 1
    return any(board[to] == mine("P") for side in (-1, 1) for to in RAYS[square, (side, behind)][:1])


def play(position: Position, move: Move) -> Position:
    """The position after a move that is legal in it."""
    board = list(position.board)
    piece = board[move.origin]
    board[move.origin] = "."
    board[move.target] = piece
    passed = None
    if piece in "Pp":
        if move.promotion:
            board[move.target] = move.promotion.upper() if position.is_whites_turn else move.promotion
        if move.target == position.en_passant:
            board[move.origin // 8 * 8 + move.target % 8] = "."
        if abs(move.target - move.origin) == 16:
            passed = (move.origin + move.target) // 2
    elif piece in "Kk" and abs(move.target - move.origin) == 2:
        corner, beside = ROOK_MOVES[move.target]
        board[beside], board[corner] = board[corner], "."
    gone = HOMES.get(move.origin, "") + HOMES.get(move.target, "")
    castling = "".join(right for right in position.castling if right not in gone)
    return Position("".join(board), not position.is_whites_turn, castling, passed)


def san(position: Position, move: Move) -> str:
    """A legal move as scoresheets have it: Nf3, exd5, R1e2, O-O, e8=Q+, Qxf7#."""
    after = play(position, move)
    end = ("+" if legal_moves(after) else "#") if is_check(after) else ""
    piece = position.board[move.origin].upper()
    origin, target = name_of(move.origin), name_of(move.target)
    if piece == "K" and abs(move.target - move.origin) == 2:
        return ("O-O" if move.target > move.origin else "O-O-O") + end
    if piece == "P":
        start = "" if origin[0] == target[0] else origin[0] + "x"
        return start + target + (f"={move.promotion.upper()}" if move.promotion else "") + end
    captures = "x" if position.board[move.target] != "." else ""
    others = [
        name_of(other.origin)
        for other in legal_moves(position)
        if other.target == move.target
        and other.origin != move.origin
        and position.board[other.origin] == position.board[move.origin]
    ]
    if not others:
        start = ""
    elif all(other[0] != origin[0] for other in others):
        start = origin[0]
    elif all(other[1] != origin[1] for other in others):
        start = origin[1]
    else:
        start = origin
    return piece + start + captures + target + end


def _moves(position: Position) -> Iterator[Move]:
    """What the pieces can do, whether or not it leaves the king attacked."""
    for square in range(64):
        if position.is_own(square):
            piece = position.board[square].upper()
            if piece == "P":
                yield from _pawn_moves(position, square)
            elif piece in LEAPERS:
                yield from _moves_along(position, square, LEAPERS[piece], 1)
            else:
                yield from _moves_along(position, square, SLIDERS[piece], 7)
    yield from _castlings(position)


def _moves_along(position: Position, square: int, steps: Steps, length: int) -> Iterator[Move]:
    for step in steps:
        for target in RAYS[square, step][:length]:
            if position.is_own(target):
                break
            yield Move(square, target)
            if position.board[target] != ".":
                break


def _pawn_moves(position: Position, square: int) -> Iterator[Move]:
    board = position.board
    ahead, home, last = (1, 1, 7) if position.is_whites_turn else (-1, 6, 0)
    targets = []
    for target in RAYS[square, (0, ahead)][: 2 if square // 8 == home else 1]:
        if board[target] != ".":
            break
        targets.append(target)
    for side in (-1, 1):
        for target in RAYS[square, (side, ahead)][:1]:
            if target == position.en_passant or (board[target] != "." and not position.is_own(target)):
                targets.append(target)
    for target in targets:
        for promotion in PROMOTIONS if target // 8 == last else ("",):
            yield Move(square, target, promotion)


def _castlings(position: Position) -> Iterator[Move]:
    for right in position.castling:
        if right.isupper() == position.is_whites_turn:
            way, empty = CASTLINGS[right]
            if all(position.board[square] == "." for square in empty) and not any(
                is_attacked(position, square, by_white=not position.is_whites_turn) for square in way
            ):
                yield Move(way[0], way[-1])


def _leaves_king(position: Position, move: Move) -> bool:
    """True if the mover's own king would stand attacked."""
    return is_check(replace(play(position, move), is_whites_turn=position.is_whites_turn))
