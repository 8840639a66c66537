"""Names in Redis: those of one Redis are as they ever were, and a partition has all of its in one slot."""

import pytest
from redis.crc import key_slot

from broker.keys import PARTITIONS, SLOTS, Channels, Keys, partition_of, partition_of_charge, slot_of
from lockstep.contract import Charge, IdempotencyRecord
from tests.support.commits import new_id

ID = "5f0f0f6e-0000-4000-8000-000000000001"


def names_of(keys: Keys) -> dict[str, str]:
    """Every key, by what it is."""
    record, former = keys.records(IdempotencyRecord("a", b"{}", 1, "b"))
    return {
        "state": keys.state(ID),
        "events": keys.events(ID),
        "deadlines": keys.deadlines,
        "sessions": keys.sessions,
        "epoch": keys.epoch,
        "routing": keys.routing,
        "partitions": keys.partitions,
        "record": record,
        "former record": former,
        "window": keys.window(Charge("switch:x", 1, 1)),
        "occupancy": keys.occupancy("room"),
        "presence": keys.presence(ID),
        "presence of a process": keys.presence_of("me"),
        "presence processes": keys.presence_processes,
        "life sign": keys.life_sign("me"),
    }


def channels_of(channels: Channels) -> list[str]:
    return [channels.updates, channels.update(ID), channels.message(ID), channels.probe("me")]


def test_the_names_on_one_redis_have_no_tag() -> None:
    assert names_of(Keys("p-")) == {
        "state": f"p-session:{ID}",
        "events": f"p-events:{ID}",
        "deadlines": "p-deadlines",
        "sessions": "p-sessions",
        "epoch": "p-epoch",
        "routing": "p-routing",
        "partitions": "p-partitions",
        "record": "p-idempotency:a",
        "former record": "p-idempotency:b",
        "window": "p-rl:switch:x",
        "occupancy": "p-inside:room",
        "presence": f"p-presence:{ID}",
        "presence of a process": "p-presence-of:me",
        "presence processes": "p-presence-processes",
        "life sign": "p-process:me",
    }
    assert channels_of(Channels("all", "p-")) == [
        "p-session-updates",
        "p-session-updates",
        f"p-ws:{ID}",
        "p-probe:me",
    ]
    assert Channels("targeted", "p-").of_session(ID) == (f"p-session-updates:{ID}", f"p-ws:{ID}")
    assert (Channels("all", "p-").pattern, Channels("targeted", "p-").pattern) == ("p-ws:*", None)


@pytest.mark.parametrize("mode", Channels.MODES)
@pytest.mark.parametrize("partition", [0, 7, 63])
def test_every_name_of_a_partition_is_in_its_slot(mode: str, partition: int) -> None:
    names = [*names_of(Keys("p-", partition)).values(), *channels_of(Channels(mode, "p-", partition))]
    assert {key_slot(name.encode()) for name in names} == {slot_of(partition)}
    assert all(f"{{{partition}}}" in name for name in names)


def test_each_session_has_a_partition_and_each_master_of_three_a_third_of_them() -> None:
    ids = [new_id() for _ in range(5_000)]
    assert {partition_of(each) for each in ids} == set(range(PARTITIONS))
    counts = [0, 0, 0]
    for partition in range(PARTITIONS):
        counts[slot_of(partition) * 3 // SLOTS] += 1
    assert sorted(counts) == [21, 21, 22]


def test_what_is_counted_of_a_session_is_in_its_partition() -> None:
    assert partition_of_charge(Charge(f"switch:{ID}", 1, 1)) == partition_of(ID)
    assert partition_of_charge(Charge("general", 1, 1)) == partition_of("general")


def test_a_pattern_names_the_keys_of_all_partitions() -> None:
    assert Keys("p-", "*").state("*") == "p-session:{*}:*"
    assert Channels("targeted", "p-", "*").update("*") == "p-session-updates:{*}:*"
