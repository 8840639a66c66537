"""The back end's API: games, moves, and the tokens that say who may make them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import jwt
from lockstep_client import AsyncLockstep, LockstepError, mint_token
from tornado.web import Application, RequestHandler

from examples.chess.referee import Referee, Refused
from examples.chess.rules import legal_moves
from examples.running import Pages, Setup

GAME = "/api/games/([0-9a-f-]{36})"
LINK_LIFETIME_S = 7 * 86_400


@asynccontextmanager
async def application(setup: Setup) -> AsyncIterator[Application]:
    """The API and the pages."""

    def admin_token() -> str:
        return mint_token(setup.secret, scope="admin")

    async with AsyncLockstep(setup.lockstep_url, token=admin_token) as lockstep:
        services = {"referee": Referee(setup.lockstep_url, lockstep), "secret": setup.secret}
        yield Application(
            [
                ("/api/games", Games, services),
                (GAME, OneGame, services),
                (f"{GAME}/moves", Moves, services),
                (f"{GAME}/resign", Resignation, services),
                ("/(.*)", Pages, {"path": setup.pages, "default_filename": "index.html"}),
            ]
        )


class Handler(RequestHandler):
    """JSON in, JSON out; errors as Lockstep tells them: {"error": {"code", "message"}}."""

    def initialize(self, referee: Referee, secret: str) -> None:
        self.referee = referee
        self.secret = secret

    @property
    def token(self) -> str:
        return self.request.headers.get("Authorization", "").removeprefix("Bearer ")

    def subject(self, game_id: str, *scopes: str) -> str:
        """Whose token the request has: a player's id. Refuses one that is not for this, or is no good."""
        try:
            claims = jwt.decode(self.token, self.secret, algorithms=["HS256"])
        except jwt.InvalidTokenError as error:
            raise Refused(401, "UNAUTHORIZED", f"The link is no good: {error}") from None
        if claims["sid"] != game_id or claims["scope"] not in scopes:
            raise Refused(403, "FORBIDDEN", "The link does not allow this")
        return str(claims.get("sub", ""))

    def body(self, **fields: type) -> dict[str, Any]:
        """The object in the body, which has to have these fields."""
        try:
            body = json.loads(self.request.body)
        except ValueError:
            raise Refused(400, "MALFORMED_JSON", "The body is not JSON") from None
        if not isinstance(body, dict) or any(type(body.get(name)) is not fields[name] for name in fields):
            raise Refused(400, "VALIDATION_ERROR", f"The body needs {', '.join(fields)}")
        return body

    def log_exception(self, kind: Any, error: Any, traceback: Any) -> None:
        if not isinstance(error, Refused | LockstepError):
            super().log_exception(kind, error, traceback)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None))[1]
        if isinstance(error, Refused | LockstepError):
            self.set_status(error.status or 503)
            self.finish({"error": {"code": error.code, "message": error.message}})
        else:
            status = HTTPStatus(status_code)
            self.finish({"error": {"code": status.name, "message": status.phrase}})


class Games(Handler):
    async def post(self) -> None:
        """A new game: its links. Who opens one is who it is for."""
        body = self.body(time_ms=int, increment_ms=int)
        game = await self.referee.create(body["time_ms"], body["increment_ms"])
        game_id = game.state["session_id"]

        def link(scope: Any, player: str | None = None) -> str:
            token = mint_token(
                self.secret, session_ids=game_id, scope=scope, subject=player, lifetime_s=LINK_LIFETIME_S
            )
            return f"/#{token}"

        white, black = game.players
        self.set_status(201)
        self.finish({"white": link("play", white), "black": link("play", black), "spectators": link("view")})


class OneGame(Handler):
    async def get(self, game_id: str) -> None:
        """What has been played so far, and what the player whose turn it is may do."""
        self.subject(game_id, "play", "view")
        game = await self.referee.game(game_id)
        self.finish(
            {
                "lockstep_url": self.referee.lockstep_url,
                "version": game.state["version"],
                "players": game.players,
                "moves": game.moves,
                "legal_moves": [] if game.outcome else [str(move) for move in legal_moves(game.position)],
                "outcome": game.outcome,
            }
        )


class Moves(Handler):
    async def post(self, game_id: str) -> None:
        player = self.subject(game_id, "play")
        body = self.body(ply=int, move=str)
        self.finish({**await self.referee.move(game_id, player, self.token, body["ply"], body["move"])})


class Resignation(Handler):
    async def post(self, game_id: str) -> None:
        await self.referee.resign(game_id, self.subject(game_id, "play"))
        self.set_status(204)
        self.finish()
