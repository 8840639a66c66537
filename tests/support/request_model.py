"""What requests may say, as the contract has it: the form of bodies, before any session is looked at.

It imports nothing of the product, and belongs to session_model.py.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

DAY_MS = 86_400_000
MAX_PARTICIPANTS = 1_000
POLICIES = {
    # The first is the default.
    "per_participant": ("flag", "advance", "expire"),
    "per_group": ("flag", "advance", "expire"),
    "per_cycle": ("advance", "flag", "expire"),
    "global": ("expire", "flag"),
    "count_up": ("expire",),
}
NEEDS_SOMEBODY = ("per_participant", "per_group", "per_cycle")


class Refusal(NamedTuple):
    """A code, and the fields that are wrong; None where the contract does not say which."""

    code: str
    fields: frozenset[str] | None = frozenset()


class Refused(Exception):
    """Any of these may be the answer: which of several comes first, the contract does not say."""

    def __init__(self, refusals: Iterable[Refusal]) -> None:
        super().__init__(*refusals)
        self.refusals = frozenset(refusals)


def invalid(*fields: str) -> Refusal:
    return Refusal("VALIDATION_ERROR", frozenset(fields))


def size_bytes(value: Any) -> int:
    """Of its JSON."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def is_integer(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def is_one_of(*words: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in words


def is_text(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 128


def is_object(most_bytes: int | None = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and (most_bytes is None or size_bytes(value) <= most_bytes)


def is_uuid(value: Any) -> bool:
    """8-4-4-4-12 hex in any case."""
    if not isinstance(value, str):
        return False
    parts = value.split("-")
    return [len(part) for part in parts] == [8, 4, 4, 4, 12] and set("".join(parts)) <= set(
        "0123456789abcdefABCDEF"
    )


is_time = is_integer(1_000, DAY_MS)
PARTICIPANT = {
    "participant_id": is_uuid,
    "participant_index": is_integer(0, 2**53 - 1),
    "total_time_ms": is_time,
    "group_id": is_text,
}
CREATION = {
    "session_id": is_uuid,
    "sync_mode": is_one_of(*POLICIES),
    "on_timeout": is_one_of("flag", "advance", "expire"),
    "total_time_ms": is_time,
    "time_per_cycle_ms": is_time,
    "max_time_ms": is_time,
    "increment_ms": is_integer(0, 60_000),
    "metadata": is_object(4_096),
    "presence": lambda value: isinstance(value, bool),
    "participants": lambda value: isinstance(value, list) and len(value) <= MAX_PARTICIPANTS,
}
ANY_COMMAND = {"expected_version": is_integer(1, 2**53 - 1), "data": is_object(1_024)}
COMMANDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "start": {"participant_id": is_uuid},
    "switch": {"next_participant_id": is_uuid, "expected_participant_id": is_uuid},
    "pause": {},
    "resume": {},
    "adjust": {
        "delta_ms": lambda value: is_integer(-DAY_MS, DAY_MS)(value) and value != 0,
        "target": is_text,
    },
    "complete": {},
    "cancel": {},
    "seat": {
        "participants": lambda value: isinstance(value, list) and 1 <= len(value) <= MAX_PARTICIPANTS,
    },
    "unseat": {"participant_id": is_uuid},
    "annotate": {"metadata": is_object()},
}
REQUIRED = {
    "create": ("sync_mode",),
    "adjust": ("delta_ms",),
    "seat": ("participants",),
    "unseat": ("participant_id",),
    "annotate": ("metadata",),
}
IDS = ("participant_id", "next_participant_id", "expected_participant_id", "session_id", "target")


def wrong_in(body: Any, fields: dict[str, Callable[[Any], bool]], required: Iterable[str]) -> set[str]:
    if not isinstance(body, dict):
        return {"body"}
    wrong = {name for name in body if name not in fields}
    wrong |= {name for name, fits in fields.items() if body.get(name) is not None and not fits(body[name])}
    return wrong | {name for name in required if body.get(name) is None}


def wrong_in_participants(listed: Any) -> set[str]:
    wrong = set()
    for place, each in enumerate(listed):
        inner = wrong_in(each, PARTICIPANT, ())
        wrong |= {
            f"participants.{place}" + ("" if not isinstance(each, dict) else f".{name}") for name in inner
        }
    return wrong


def named_twice(listed: Any) -> set[str]:
    """The fields in which an id comes that came before in the same list."""
    ids = [each.get("participant_id") if isinstance(each, dict) else None for each in listed]
    folded = [str(one).lower() if is_uuid(one) else None for one in ids]
    return {
        f"participants.{place}.participant_id"
        for place, one in enumerate(folded)
        if one is not None and one in folded[:place]
    }


def without_nulls(body: dict[str, Any]) -> dict[str, Any]:
    """What a body says: null is absent, ids have no case."""
    said = {name: value for name, value in body.items() if value is not None}
    return said | {name: said[name].lower() for name in IDS if name in said and is_uuid(said[name])}


def read(name: str, body: Any) -> dict[str, Any]:
    """What a request says. Raises Refused with all that is wrong with its form."""
    body = {} if body is None and name != "create" else body
    fields = CREATION if name == "create" else COMMANDS[name] | ANY_COMMAND
    wrong = wrong_in(body, fields, REQUIRED.get(name, ()))
    if not isinstance(body, dict):
        raise Refused({invalid(*wrong)})
    said = without_nulls(body)
    listed = [] if "participants" in wrong else said.get("participants", [])
    wrong |= wrong_in_participants(listed)
    twice = named_twice(listed)
    said["participants"] = [without_nulls(each) if isinstance(each, dict) else {} for each in listed]
    if name == "create" and "sync_mode" not in wrong:
        wrong |= twice | wrong_for_mode(said)
    if wrong or twice:
        # Who is named twice may be found with the rest, or only where the rest is in order.
        raise Refused({invalid(*(wrong or twice)), invalid(*wrong, *twice)})
    return said if "participants" in fields else without(said, "participants")


def without(said: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in said.items() if key != name}


def wrong_for_mode(said: dict[str, Any]) -> set[str]:
    """What a creation lacks, or has too much of, for its mode."""
    mode, listed = said["sync_mode"], said["participants"]
    wrong = wrong_clocks(mode, listed, {})[0]
    if said.get("on_timeout", POLICIES[mode][0]) not in POLICIES[mode]:
        wrong.add("on_timeout")
    for needed_in, name in (("per_cycle", "time_per_cycle_ms"), ("global", "total_time_ms")):
        if mode == needed_in and name not in said:
            wrong.add(name)
    if mode in NEEDS_SOMEBODY and not listed:
        wrong.add("participants")
    return wrong


def wrong_clocks(
    mode: str, listed: list[dict[str, Any]], groups: dict[str, Any]
) -> tuple[set[str], set[str]]:
    """What is wrong with the clocks of newcomers beside these groups, and what may be said to be, too."""
    wrong: set[str] = set()
    arguable: set[str] = set()
    new_groups: dict[str, int] = {}
    for place, each in enumerate(listed):
        time_field, group = f"participants.{place}.total_time_ms", each.get("group_id")
        time_ms = each.get("total_time_ms")
        if mode == "per_participant" and time_ms is None:
            wrong.add(time_field)
        if mode != "per_group":
            continue
        if group is None:
            wrong.add(f"participants.{place}.group_id")
            if time_ms is None:
                # With a group that exists it would be right.
                (arguable if groups else wrong).add(time_field)
        elif group in groups:
            if time_ms is not None:
                wrong.add(time_field)
        elif time_ms is None or new_groups.setdefault(group, time_ms) != time_ms:
            wrong.add(time_field)
    return wrong, arguable
