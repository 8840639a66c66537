"""Lets legal moves press the clock, and ends games that are over."""

from lockstep_client import AsyncLockstep, LockstepError

from examples.chess.game import Game, Made, Outcome, game_of
from examples.chess.rules import legal_move, san


class Refused(Exception):
    """What a player cannot do, as it is answered."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Referee:
    """Knows no game by heart: each is read from its session's history when somebody asks."""

    def __init__(self, lockstep_url: str, lockstep: AsyncLockstep) -> None:
        """`lockstep` may do everything."""
        self.lockstep_url = lockstep_url
        self._lockstep = lockstep

    async def create(self, time_ms: int, increment_ms: int) -> Game:
        state = await self._lockstep.create_session(
            {
                "sync_mode": "per_participant",
                "participants": [{"total_time_ms": time_ms}, {"total_time_ms": time_ms}],
                "increment_ms": increment_ms,
                # A clock that runs out ends the game, whether or not anybody is there to say so.
                "on_timeout": "expire",
                "presence": True,
                "metadata": {"title": "Chess"},
            }
        )
        return Game(state)

    async def game(self, game_id: str) -> Game:
        """The game as it stands. If it is over, so is its session."""
        game = game_of([event async for event in self._lockstep.events(game_id)])
        if game.outcome and not game.has_ended:
            await self._end(game_id, game.outcome)
        return game

    async def move(self, game_id: str, player: str, token: str, ply: int, text: str) -> Made:
        """Make the game's move number `ply`, counted from 0, and press the clock for it.

        The player's own token presses: Lockstep checks that it is this player's turn, and its history names
        the player.
        """
        game = await self.game(game_id)
        if 0 <= ply < len(game.moves) and game.moves[ply]["move"] == text:
            return game.moves[ply]  # it was made before; the answer was lost
        if game.outcome or game.has_ended:
            raise Refused(409, "GAME_OVER", "The game is over")
        if player != game.to_move or ply != len(game.moves):
            raise Refused(409, "NOT_YOUR_TURN", "It is not your turn")
        move = legal_move(game.position, text)
        if move is None:
            raise Refused(422, "ILLEGAL_MOVE", f"{text} is not a legal move")
        made = Made(move=text, san=san(game.position, move))
        if game.state["status"] == "pending":
            # White's clock starts with white's first move: until then black may be still on the way.
            await self._lockstep.command(game_id, "start", idempotency_key="start")
        async with AsyncLockstep(self.lockstep_url, token=token) as lockstep:
            await lockstep.command(
                game_id,
                "switch",
                {"expected_participant_id": player, "data": {"move": made["move"], "san": made["san"]}},
                idempotency_key=f"{ply}-{text}",
            )
        await self.game(game_id)  # which ends it, if that was mate
        return made

    async def resign(self, game_id: str, player: str) -> None:
        game = await self.game(game_id)
        if game.outcome or game.has_ended:
            raise Refused(409, "GAME_OVER", "The game is over")
        await self._end(game_id, game.lost_by(player, "resignation"))

    async def _end(self, game_id: str, outcome: Outcome) -> None:
        data = {"result": outcome["result"], "reason": outcome["reason"]}
        try:
            await self._lockstep.command(game_id, "complete", {"data": data})
        except LockstepError as error:
            # Somebody else, or the clock, was faster.
            if error.code not in ("CONFLICT", "INVALID_STATE_TRANSITION"):
                raise
