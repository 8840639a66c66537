"""What the quiz knows besides its session: names, answers, points. Pure."""

import uuid
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lockstep_client.types import CreateBody, State

MAX_NAME = 40
MAX_ANSWER = 200

Json: TypeAlias = dict[str, Any]


class Refused(Exception):
    """What a team or the host asked for cannot be done; the message is for people."""


def text(body: Json, name: str, longest: int) -> str:
    """What somebody typed in. Raises Refused where there is nothing, or too much."""
    value = body.get(name)
    if not isinstance(value, str) or not value.strip():
        raise Refused(f"{name} is missing")
    if len(value.strip()) > longest:
        raise Refused(f"{name} has more than {longest} characters")
    return value.strip()


def session_of(title: str, seconds: int, host: str) -> CreateBody:
    """A quiz as a session: a turn is a question, and the host's; teams take their seats as they come.

    The clock of a question stays at zero until the host goes on (`flag`): everybody sees that time is up.
    """
    return {
        "sync_mode": "per_cycle",
        "time_per_cycle_ms": seconds * 1000,
        "on_timeout": "flag",
        "presence": True,
        "participants": [{"participant_id": host}],
        "metadata": {"title": title},
    }


def question_of(state: State, host: str) -> int:
    """The number of the question that is being asked, from 1; 0 before the first."""
    if state["status"] == "pending":
        return 0
    (asked,) = (each["cycle_count"] for each in state["participants"] if each["participant_id"] == host)
    return asked + 1


def is_open(state: State) -> bool:
    """Whether what led to this state was in time: the server settles first what is due."""
    return state["status"] == "running" and not any(each["has_expired"] for each in state["participants"])


@dataclass
class Team:
    id: str
    name: str
    answers: dict[int, str] = field(default_factory=dict)
    """By the number of the question."""
    right: set[int] = field(default_factory=set)
    """The questions that were answered well."""
    refusals: int = 0
    """How many of its answers came too late."""


@dataclass
class Quiz:
    """What Lockstep does not keep. It dies with the process: an application has a database."""

    session_id: str
    host: str = field(default_factory=lambda: str(uuid.uuid4()))
    teams: dict[str, Team] = field(default_factory=dict)

    def new_team(self, name: str) -> Team:
        """A team that is not seated yet. Raises Refused where the name is taken."""
        if any(each.name.casefold() == name.casefold() for each in self.teams.values()):
            raise Refused(f"There is a team called {name} already")
        return Team(str(uuid.uuid4()), name)

    def judge(self, team_id: str, question: int, is_right: bool) -> Team:
        """The host's word on an answer; it may be changed. Raises Refused where there is none."""
        team = self.teams.get(team_id)
        if team is None or question not in team.answers:
            raise Refused("There is no such answer")
        (team.right.add if is_right else team.right.discard)(question)
        return team

    def shown(self) -> Json:
        """What everybody may know."""
        return {
            "host": self.host,
            "teams": [
                {
                    "id": each.id,
                    "name": each.name,
                    "points": len(each.right),
                    "answered": sorted(each.answers),
                }
                for each in self.teams.values()
            ],
        }

    def answers(self, question: int) -> list[Json]:
        """What the host may know: in the order in which they came, for a dict keeps it."""
        return [
            {"team": each.id, "name": each.name, "answer": answer, "isRight": question in each.right}
            for each in self.teams.values()
            if (answer := each.answers.get(question)) is not None
        ]
