"""A game of chess, as the history of its session tells it. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypedDict, cast

from lockstep_client.changes import apply_changes
from lockstep_client.types import HistoryEvent, State

from examples.chess.rules import START, Position, is_check, legal_move, legal_moves, play

# Lockstep keeps the last 1,000 events of a session: of a longer game nobody could tell the first moves.
MAX_MOVES = 900
DRAWN = "1/2-1/2"


class Made(TypedDict):
    """A move, as it is kept in the `data` of its press: as UCI and as scoresheets write it."""

    move: str
    san: str


class Outcome(TypedDict):
    """How a game has ended, as it is kept in the `data` of the session's end."""

    result: str
    reason: str


@dataclass
class Game:
    """What has been played, up to the `version` of its session."""

    state: State
    position: Position = START
    moves: list[Made] = field(default_factory=list)
    outcome: Outcome | None = None

    @property
    def players(self) -> list[str]:
        """The participants' ids, white's first."""
        return [each["participant_id"] for each in self.state["participants"]]

    @property
    def to_move(self) -> str:
        return self.players[len(self.moves) % 2]

    @property
    def has_ended(self) -> bool:
        """True if its session has: nobody's clock runs any more."""
        return self.state["status"] not in ("pending", "running", "paused")

    def lost_by(self, player: str, reason: str) -> Outcome:
        return Outcome(result="0-1" if player == self.players[0] else "1-0", reason=reason)


def game_of(history: Iterable[HistoryEvent]) -> Game:
    """The game of a whole history, which begins with the session's creation."""
    events = iter(history)
    game = Game(cast(State, next(events)["changes"]))
    for event in events:
        game.state = apply_changes(game.state, event["changes"])
        if event["type"] == "switched":
            _press(game, event)
        elif event["type"] == "completed":
            game.outcome = cast(Outcome | None, event.get("data"))
        elif event["type"] == "expired":
            late = next(each for each in game.state["participants"] if each["has_expired"])
            game.outcome = game.lost_by(late["participant_id"], "time")
    game.outcome = game.outcome or _outcome_on_board(game)
    return game


def _press(game: Game, event: HistoryEvent) -> None:
    made = event.get("data", {})
    move = legal_move(game.position, made.get("move"))
    if game.outcome is None and move is None:
        # Who has a token to press with can press without asking us; then there is no legal move with it.
        game.outcome = _outcome_on_board(game) or game.lost_by(game.to_move, "a press without a legal move")
    elif game.outcome is None and move is not None:
        game.position = play(game.position, move)
        game.moves.append(Made(move=str(move), san=str(made.get("san"))))


def _outcome_on_board(game: Game) -> Outcome | None:
    if not legal_moves(game.position):
        if is_check(game.position):
            return game.lost_by(game.to_move, "checkmate")
        return Outcome(result=DRAWN, reason="stalemate")
    if len(game.moves) >= MAX_MOVES:
        return Outcome(result=DRAWN, reason=f"{MAX_MOVES} moves")
    return None
