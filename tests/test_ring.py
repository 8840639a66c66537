"""The latest UPDATEs of a session: what they reach back to, and how much of them is kept."""

import json
from typing import Any

import pytest

from lockstep.live.ring import MAX_RING_BYTES, MAX_RING_EVENTS, Ring, Rings
from tests.support.chains import EPOCH, NEW, S, changes_to, event, head, position


def a_ring(first: int, last: int, line: str = "a", padding: int = 0) -> Ring:
    """One that began at `first` and has the UPDATEs up to `last`."""
    ring = Ring()
    ring.begin(position(first, line))
    grow(ring, first, last, line, padding)
    return ring


def grow(ring: Ring, first: int, last: int, line: str = "a", padding: int = 0) -> None:
    for version in range(first + 1, last + 1):
        before = position(version - 1, line)
        ring.append(before, position(version, line), changes_to(version, line, padding=padding))


def since(ring: Ring, asked: str) -> list[tuple[str, str]] | None:
    """Where the UPDATEs behind this position lead from and to."""
    found = ring.since(S, asked)
    return None if found is None else [(each["from"], each["position"]) for each in map(json.loads, found)]


def chain(first: int, last: int) -> list[tuple[str, str]]:
    return [(position(version), position(version + 1)) for version in range(first, last)]


def test_a_ring_has_what_is_behind_each_of_its_positions_and_nothing_behind_the_last() -> None:
    ring = a_ring(3, 9)
    for asked in range(3, 10):
        assert since(ring, position(asked)) == chain(asked, 9)


@pytest.mark.parametrize(
    "asked",
    [
        position(2),
        position(10),
        position(5, "b"),
        position(9, "b"),
        position(5, epoch=NEW),
        position(5)[:-1],
        position(5) + "x",
        position(5) + '"',
        position(5).upper(),
        f"{EPOCH}-5",
        f"{EPOCH}-05-a0000005",
        "",
        '"',
        "\u2028",
        "x" * 200,
    ],
)
def test_a_ring_has_nothing_behind_a_position_that_it_does_not_pass(asked: str) -> None:
    ring = a_ring(3, 9)
    ring.put_before(head(9), [event(version) for version in range(3, 10)])
    assert since(ring, asked) is None
    assert since(ring, asked) is None, "nor when the events have become updates"


def test_a_ring_that_begins_anew_has_nothing_of_before() -> None:
    ring = a_ring(3, 9)
    ring.begin(position(5, "b"))
    assert [since(ring, position(version)) for version in range(3, 10)] == [None] * 7
    assert since(ring, position(5, "b")) == []
    grow(ring, 5, 9, "b")
    assert since(ring, position(6)) is None
    assert len(since(ring, position(6, "b")) or []) == 3
    ring.begin(None)
    assert (since(ring, position(6, "b")), ring.size_bytes) == (None, 0)


def test_events_stand_before_what_has_come_since_they_were_read() -> None:
    ring = a_ring(7, 12)
    ring.put_before(head(9), [event(version) for version in range(4, 10)])
    assert since(ring, position(4)) == chain(4, 12)
    for asked in range(4, 13):
        assert since(ring, position(asked)) == chain(asked, 12)
    # The first event leads from nobody knows where.
    assert since(ring, position(3)) is None


@pytest.mark.parametrize("read", [head(9, "b"), head(13), head(6), head(9, epoch=NEW)])
def test_events_that_lead_to_where_the_chain_is_not_are_left_out(read: Any) -> None:
    ring = a_ring(7, 12)
    ring.put_before(read, [event(version) for version in range(3, 10)])
    assert since(ring, position(5)) is None
    assert since(ring, position(7)) == chain(7, 12)


def test_events_of_one_commit_are_one_update_and_only_its_end_is_a_position() -> None:
    ring = a_ring(9, 9)
    kept = [event(5), event(6, is_last=False), event(7, is_last=False), event(8), event(9)]
    ring.put_before(head(9), kept)
    assert since(ring, position(5)) == [(position(5), position(8)), (position(8), position(9))]
    assert since(ring, position(6)) is None
    found = ring.since(S, position(5)) or []
    assert [each["version"] for each in json.loads(found[0])["events"]] == [6, 7, 8]


def test_events_before_the_end_of_the_first_commit_make_no_update() -> None:
    ring = a_ring(9, 9)
    ring.put_before(head(9), [event(6, is_last=False), event(7), event(8), event(9)])
    assert since(ring, position(7)) == chain(7, 9)
    assert since(ring, position(6)) is None


def test_events_that_are_read_again_take_the_place_of_those_before() -> None:
    ring = a_ring(7, 9)
    for _ in range(3):
        ring.put_before(head(9), [event(version) for version in range(4, 10)])
    assert ring.size_bytes == sum(len(event(version)) for version in range(4, 10))
    assert since(ring, position(4)) == chain(4, 9)
    ring.put_before(head(9), [event(version) for version in range(2, 10)])
    assert since(ring, position(2)) == chain(2, 9)


@pytest.mark.parametrize("from_events", [False, True])
def test_a_ring_has_the_last_hundred_events(from_events: bool) -> None:
    last = 3 * MAX_RING_EVENTS
    ring = a_ring(1, last)
    if from_events:
        ring = a_ring(last, last)
        ring.put_before(head(last), [event(version) for version in range(last - 99, last + 1)])
        assert since(ring, position(last - 99)) == chain(last - 99, last)
        grow(ring, last, last := last + 50)
    assert since(ring, position(last - 100)) == chain(last - 100, last)
    assert since(ring, position(last - 101)) is None


def test_the_hundred_are_events_and_not_updates() -> None:
    ring = Ring()
    ring.begin(position(1))
    for version in range(4, 301, 3):
        before = position(version - 3)
        ring.append(before, position(version), changes_to(version, came_from=before))
    assert len(since(ring, position(199)) or []) == 33  # of three events each
    assert since(ring, position(196)) is None


@pytest.mark.parametrize("is_read", [False, True])
def test_a_ring_never_takes_more_than_its_bytes_and_the_oldest_go(is_read: bool) -> None:
    ring = a_ring(1, 1)
    for version in range(2, 200):
        grow(ring, version - 1, version, padding=1_500)
        if is_read and version % 10 == 0:
            first = max(1, version - 60)
            ring.put_before(head(version), [event(each, padding=1_500) for each in range(first, version + 1)])
            ring.since(S, "x")
        assert ring.size_bytes <= MAX_RING_BYTES
    assert len(ring.since(S, position(170)) or []) == 29
    assert ring.since(S, position(150)) is None


def test_of_events_that_take_too_much_the_oldest_go() -> None:
    ring = a_ring(50, 50)
    ring.put_before(head(50), [event(version, padding=1_500) for version in range(10, 51)])
    assert MAX_RING_BYTES - 1_700 < ring.size_bytes <= MAX_RING_BYTES
    grow(ring, 50, 52)
    assert len(ring.since(S, position(30)) or []) == 22
    assert ring.since(S, position(10)) is None


def test_an_update_that_is_too_big_alone_leaves_a_ring_that_goes_on() -> None:
    ring = a_ring(1, 5)
    grow(ring, 5, 6, padding=MAX_RING_BYTES)
    assert (ring.size_bytes, since(ring, position(5)), since(ring, position(6))) == (0, None, [])
    grow(ring, 6, 8)
    assert since(ring, position(6)) == chain(6, 8)
    ring.put_before(head(8), [event(version, padding=30_000) for version in range(5, 9)])
    assert ring.size_bytes <= MAX_RING_BYTES
    assert since(ring, position(8)) == []


def test_a_size_is_what_the_ring_holds_and_comes_back_to_nothing() -> None:
    ring = a_ring(5, 30, padding=700)
    ring.put_before(head(20), [event(version, padding=700) for version in range(1, 21)])
    ring.since(S, position(1))
    held = sum(map(len, ring.since(S, position(1)) or []))
    assert held < ring.size_bytes < held + 30 * 200
    ring.begin(position(30))
    assert ring.size_bytes == 0


def test_of_all_rings_those_go_that_were_not_used_for_longest() -> None:
    one = a_ring(1, 20)
    rings = Rings(max_bytes=3 * one.size_bytes)
    kept = [a_ring(1, 20) for _ in range(3)]
    for ring in kept:
        rings.note_size(ring)
    assert rings.total_bytes == 3 * one.size_bytes
    rings.note_size(kept[0])  # somebody has resumed
    rings.note_size(one)
    assert rings.total_bytes == 3 * one.size_bytes
    assert [ring.since(S, position(5)) is None for ring in (*kept, one)] == [False, True, False, False]
    assert since(kept[1], position(20)) == [], "it goes on from where it was"
    grow(kept[1], 20, 22)
    rings.note_size(kept[1])
    assert since(kept[1], position(20)) == chain(20, 22)
    assert since(kept[2], position(5)) is None
    for ring in (*kept, one):
        rings.forget(ring)
        rings.forget(ring)
    assert rings.total_bytes == 0


def test_the_sum_of_all_sizes_is_right_whatever_grows_shrinks_or_goes() -> None:
    rings = Rings(max_bytes=100_000)
    alive: list[Ring] = []
    for number in range(500):
        ring = a_ring(1, 1 + number % 7, padding=number % 5 * 700)
        alive.append(ring)
        rings.note_size(ring)
        if number % 3 == 0:
            other = alive[number * 7 % len(alive)]
            other.begin(other.position)
            rings.note_size(other)
        if number % 4 == 0:
            rings.forget(alive.pop(number * 5 % len(alive)))
        assert rings.total_bytes == sum(each.size_bytes for each in alive) <= 100_000
