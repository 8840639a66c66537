"""The engine's rules as the service applies them: what fell due before is settled first."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lockstep.rules import engine, seating
from lockstep.rules.engine import Spec, create, is_due, settle
from lockstep.rules.state import Session
from lockstep.rules.steps import Guard, Rule, Step, Transition

__all__ = ["Rule", "Spec", "Step", "Transition", "create", "is_due", "settle"]


def settled(session: Session, now_ms: int) -> tuple[Step, int]:
    """All that fell due, and the instant to go on from: never before what has already happened."""
    return guarded(settle)(session, now_ms), max(now_ms, session.updated_at_ms)


def guarded(rule: Callable[..., Step], *guards: Guard) -> Callable[..., Step]:
    """The rule, decided on as often as it takes. Raises what it, or a guard, refuses with."""

    def decided(session: Session, now_ms: int, **arguments: Any) -> Step:
        step = Step(session)
        while True:
            decision = engine.decide(step.session, now_ms, partial(rule, **arguments), guards)
            step = step.followed_by(decision.step)
            if decision.refusal is not None:
                raise decision.refusal
            if decision.is_settled:
                return step

    return decided


def expecting(
    rule: Callable[..., Step], *, version: int | None = None, tags: frozenset[str] | None = None
) -> Callable[..., Step]:
    """The rule, refused unless the settled session is what its sender saw."""
    guards = [] if tags is None else [engine.as_tagged(tags)]
    return guarded(rule, *guards, *([] if version is None else [engine.at_version(version)]))


start, switch, pause, resume = map(guarded, (engine.start, engine.switch, engine.pause, engine.resume))
adjust, complete, cancel = map(guarded, (engine.adjust, engine.complete, engine.cancel))
seat, unseat, annotate = map(guarded, (seating.seat, seating.unseat, engine.annotate))
