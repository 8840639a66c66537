"""The back end of the quiz: it creates sessions, seats teams, takes answers, hands out tokens."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
from lockstep_client import AsyncLockstep, LockstepError, mint_token
from lockstep_client.types import Scope
from tornado.web import Application, HTTPError, RequestHandler

from examples.quiz.quiz import (
    MAX_ANSWER,
    MAX_NAME,
    Json,
    Quiz,
    Refused,
    is_open,
    question_of,
    session_of,
    text,
)
from examples.running import ROOT, Pages, Setup

TOKEN_LASTS_S = 12 * 3600
MAX_SECONDS = 600
CLIENT = ROOT / "clients" / "js" / "src"
QR = ROOT / "handlers" / "page"


@dataclass
class Hall:
    """What all handlers share."""

    setup: Setup
    lockstep: AsyncLockstep
    quizzes: dict[str, Quiz] = field(default_factory=dict)

    def token(self, session_id: str, scope: Scope, subject: str) -> str:
        return mint_token(
            self.setup.secret, session_ids=session_id, scope=scope, subject=subject, lifetime_s=TOKEN_LASTS_S
        )


class Handler(RequestHandler):
    """Answers in JSON; what was refused says why in `error`."""

    def initialize(self, hall: Hall) -> None:
        self.hall = hall

    def check_xsrf_cookie(self) -> None:
        """There are no cookies: who asks is said by a header, which no other page can send."""

    @property
    def body(self) -> Json:
        try:
            body = json.loads(self.request.body or b"{}")
        except ValueError:
            raise Refused("The body is not JSON") from None
        if not isinstance(body, dict):
            raise Refused("The body is not an object")
        return body

    def quiz(self, session_id: str) -> Quiz:
        quiz = self.hall.quizzes.get(session_id)
        if quiz is None:
            raise HTTPError(404, reason="There is no such quiz")
        return quiz

    def caller(self, quiz: Quiz) -> str:
        """Whose token came with the request: a team's id, or the host's."""
        token = self.request.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            claims = jwt.decode(token, self.hall.setup.secret, algorithms=["HS256"])
        except jwt.InvalidTokenError:
            raise HTTPError(401, reason="Join the quiz first") from None
        if claims["sid"] != quiz.session_id:
            raise HTTPError(403, reason="That is for another quiz")
        return str(claims["sub"])

    def require_host(self, quiz: Quiz) -> None:
        if self.caller(quiz) != quiz.host:
            raise HTTPError(403, reason="Only the host can do that")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        if isinstance(error, Refused):
            self.set_status(400)
            self.finish({"error": str(error)})
        elif isinstance(error, LockstepError):
            self.set_status(error.status or 503)
            self.finish({"error": error.message})
        else:
            self.finish({"error": self._reason})

    def log_exception(self, *what: Any) -> None:
        if not isinstance(what[1], Refused | LockstepError):
            super().log_exception(*what)


class Quizzes(Handler):
    async def post(self) -> None:
        """A new quiz: {title, seconds} -> what its host needs."""
        title = text(self.body, "title", 80)
        seconds = self.body.get("seconds")
        if not isinstance(seconds, int) or not 1 <= seconds <= MAX_SECONDS:
            raise Refused(f"seconds is not a number from 1 to {MAX_SECONDS}")
        quiz = Quiz("")
        state = await self.hall.lockstep.create_session(session_of(title, seconds, quiz.host))
        quiz.session_id = state["session_id"]
        self.hall.quizzes[quiz.session_id] = quiz
        self.set_status(201)
        self.finish(
            {"quiz": quiz.session_id, "token": self.hall.token(quiz.session_id, "control", quiz.host)}
        )


class OneQuiz(Handler):
    async def get(self, session_id: str) -> None:
        """Where its clock runs, and who takes part."""
        self.finish({"lockstep": self.hall.setup.lockstep_url, **self.quiz(session_id).shown()})


class Teams(Handler):
    async def post(self, session_id: str) -> None:
        """A team joins, also late: {name} -> its id and token. Everybody hears of it as `seated`."""
        quiz = self.quiz(session_id)
        team = quiz.new_team(text(self.body, "name", MAX_NAME))
        # From here on its name is taken, whoever else asks while the server seats it.
        quiz.teams[team.id] = team
        try:
            await self.hall.lockstep.command(
                session_id,
                "seat",
                {"participants": [{"participant_id": team.id}], "data": {"name": team.name}},
            )
        except LockstepError:
            del quiz.teams[team.id]
            raise
        self.set_status(201)
        self.finish({"team": team.id, "token": self.hall.token(session_id, "view", team.id)})


class Answers(Handler):
    async def post(self, session_id: str) -> None:
        """A team's answer: {question, answer}; the first one counts.

        It becomes an event of the session, so that its instant is the server's, in order with the end of the
        time; but not its words: whoever may watch hears of every event.
        """
        quiz = self.quiz(session_id)
        team = quiz.teams.get(self.caller(quiz))
        if team is None:
            raise HTTPError(403, reason="Only teams answer")
        answer, question = text(self.body, "answer", MAX_ANSWER), self.body.get("question")
        if not isinstance(question, int):
            raise Refused("question is not a number")
        if question in team.answers:  # sent again, or thought over: the first one counts
            self.finish({"answer": team.answers[question]})
            return
        # Whoever hears of it reads it from here, maybe before this process has the reply.
        team.answers[question] = answer
        is_kept = False
        try:
            state = await self.hall.lockstep.command(
                session_id,
                "annotate",
                {"metadata": {}, "data": {"answered": question, "team": team.id}},
                # However often the phone sends it; what came too late for a pause may be sent anew after it.
                idempotency_key=f"{team.id}-{question}-{team.refusals}",
            )
            if question_of(state, quiz.host) != question or not is_open(state):
                team.refusals += 1
                raise Refused("Too late")
            is_kept = True
        finally:
            if not is_kept:
                del team.answers[question]
        self.set_status(201)
        self.finish({"answer": answer})


class AnswersTo(Handler):
    async def get(self, session_id: str, question: str) -> None:
        """What the teams answered, for the host."""
        quiz = self.quiz(session_id)
        self.require_host(quiz)
        self.finish({"answers": quiz.answers(int(question))})


class Verdicts(Handler):
    async def post(self, session_id: str) -> None:
        """The host's word on an answer: {team, question, isRight}."""
        quiz = self.quiz(session_id)
        self.require_host(quiz)
        team, question, is_right = (self.body.get(name) for name in ("team", "question", "isRight"))
        if not isinstance(team, str) or not isinstance(question, int) or not isinstance(is_right, bool):
            raise Refused("A verdict has team, question and isRight")
        points = len(quiz.judge(team, question, is_right).right)
        # Everybody is told; what they show they read from here.
        await self.hall.lockstep.command(
            session_id,
            "annotate",
            {"metadata": {}, "data": {"judged": question, "team": team, "points": points}},
        )
        self.finish({"points": points})


@asynccontextmanager
async def application(setup: Setup) -> AsyncIterator[Application]:
    async with AsyncLockstep(
        setup.lockstep_url, token=lambda: mint_token(setup.secret, scope="admin", subject="quiz")
    ) as lockstep:
        hall = {"hall": Hall(setup, lockstep)}
        quiz = "/api/quizzes/([0-9a-f-]{36})"
        yield Application(
            [
                ("/api/quizzes", Quizzes, hall),
                (quiz, OneQuiz, hall),
                (f"{quiz}/teams", Teams, hall),
                (f"{quiz}/answers", Answers, hall),
                (f"{quiz}/answers/([0-9]{{1,4}})", AnswersTo, hall),
                (f"{quiz}/verdicts", Verdicts, hall),
                ("/(qr.js)", Pages, {"path": str(QR)}),
                ("/client/(.*)", Pages, {"path": str(CLIENT)}),
                ("/(.*)", Pages, {"path": str(setup.pages), "default_filename": "index.html"}),
            ],
            log_function=lambda handler: None,
        )
