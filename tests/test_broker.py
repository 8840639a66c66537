"""What every broker promises (lockstep/contract.py). A new broker is finished when it passes.

`broker` gives a broker that is not started yet, whose store holds nothing; everything here is asked
through the interface, in real time, with commits made as lockstep/sessions.py makes them.
"""

import asyncio
import json
import re
import secrets
from collections import defaultdict
from uuid import uuid4

import pytest
from msgspec import structs

from broker.cluster.broker import ClusterBroker
from broker.memory import MemoryBroker
from broker.redis import RedisBroker
from lockstep.contract import AlreadyDone, Attendance, Broker, Charge, EpochTooLow, IdempotencyRecord, Outcome
from lockstep.identifiers import new_epoch
from lockstep.metrics import Metrics
from lockstep.rules import state_json
from lockstep.rules.state import Mode, Session
from lockstep.wire import heads, payloads, protocol_v1
from tests.support import settled_rules as engine
from tests.support.brokers import PATIENCE_S, YieldingBroker, started
from tests.support.commits import (
    ONE_DAY_MS,
    applied,
    commit_of,
    created,
    creation,
    fell_due,
    new_id,
    new_id_beside,
    next_epoch,
    spec,
)
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import RedisServer

SERVERS = {"redis": "server", "cluster": "cluster"}
HISTORY_BYTES = 2**24
HOUR_MS = 3_600_000


@pytest.fixture(
    params=["memory", "memory_yielding", "redis", "redis_targeted", "cluster", "cluster_targeted"]
)
def broker(request: pytest.FixtureRequest) -> Broker:
    kind, _, variant = request.param.partition("_")
    if kind == "memory":
        return YieldingBroker() if variant else MemoryBroker()
    server: RedisServer | RedisCluster = request.getfixturevalue(f"redis_{SERVERS[kind]}")
    broker_of = {"redis": RedisBroker, "cluster": ClusterBroker}[kind]
    return broker_of(server.url, f"{uuid4()}-", variant or "all", allow_eviction=False, metrics=Metrics())


# --- what is stored, and when --------------------------------------------------------------------


async def stored(broker: Broker, session_id: str) -> bytes | None:
    (found,) = await broker.load([session_id])
    return found


async def reached(broker: Broker, instant_ms: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while broker.now_ms() < instant_ms:
            await asyncio.sleep((instant_ms - broker.now_ms()) / 1000)


# --- commit --------------------------------------------------------------------------------------


async def test_what_is_committed_is_stored_byte_for_byte(broker: Broker) -> None:
    async with started(broker):
        session_id = new_id()
        commit, _ = creation(broker, session_id, metadata={"name": "Zoë / \u2028 \\ \x00"})
        assert await broker.commit(commit) is Outcome.APPLIED
        assert await stored(broker, session_id) == commit.state


async def test_a_creation_is_refused_where_a_session_is_and_leaves_it_untouched(broker: Broker) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        await created(broker, session_id)
        before = await stored(broker, session_id)
        history = await broker.history(session_id, 0, HISTORY_BYTES)
        second, _ = creation(broker, session_id)
        assert await broker.commit(second) is Outcome.CONFLICT
        assert await stored(broker, session_id) == before
        assert await broker.history(session_id, 0, HISTORY_BYTES) == history
        await broker.publish(session_id, b'{"type":"LAST"}')
        await ears.until(lambda ears: ears.relayed)
        assert len(ears.published) == 1


async def test_what_is_counted_is_what_is_applied_and_one_too_many_changes_nothing(broker: Broker) -> None:
    session_id = new_id()
    charge, counts = Charge(f"switch:{session_id}", 2, 60_000), []

    async def switched(before: Session, expected: Outcome, **changes: object) -> Session:
        commit, session = commit_of(broker, before, engine.switch(before, broker.now_ms()))
        commit = structs.replace(
            commit,
            charge=charge,
            on_counted=lambda count, left_ms: counts.append((count, left_ms)),
            **changes,
        )
        assert await broker.commit(commit) is expected
        return session

    async with started(broker, session_id) as ears:
        first = await applied(broker, await created(broker, session_id), engine.start)
        second = await switched(first, Outcome.APPLIED)
        await switched(first, Outcome.CONFLICT)
        await switched(second, Outcome.WRONG_TIME, now_ms=broker.now_ms() - HOUR_MS)
        assert [count for count, _ in counts] == [1]
        third = await switched(second, Outcome.APPLIED)
        before, history = await stored(broker, session_id), await broker.history(session_id, 0, HISTORY_BYTES)
        await switched(third, Outcome.LIMITED)
        assert (await stored(broker, session_id), await broker.history(session_id, 0, HISTORY_BYTES)) == (
            before,
            history,
        )
        assert [count for count, _ in counts] == [1, 2, 3]
        assert all(0 < left_ms <= 60_001 for _, left_ms in counts)
        # What is not counted is not held up by what is.
        await applied(broker, third, engine.switch)
        await ears.until_published(5)


async def test_a_window_of_commits_ends(broker: Broker) -> None:
    session_id = new_id()
    charge, ends_ms = Charge(f"switch:{session_id}", 1, 100), []
    async with started(broker):
        session = await applied(broker, await created(broker, session_id), engine.start)
        for _ in range(2):
            commit, session = commit_of(broker, session, engine.switch(session, broker.now_ms()))
            commit = structs.replace(
                commit, charge=charge, on_counted=lambda _, left_ms: ends_ms.append(broker.now_ms() + left_ms)
            )
            assert await broker.commit(commit) is Outcome.APPLIED
            await reached(broker, ends_ms[-1] + 20)


async def test_of_two_creations_at_once_one_is_applied(broker: Broker) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        commits = [creation(broker, session_id)[0] for _ in range(10)]
        outcomes = await asyncio.gather(*map(broker.commit, commits))
        assert sorted(outcome.value for outcome in outcomes) == ["applied"] + ["conflict"] * 9
        winner = commits[outcomes.index(Outcome.APPLIED)]
        assert await stored(broker, session_id) == winner.state
        (published,) = await ears.until_published(1)
        assert winner.state in published


async def test_commit_refuses_a_stale_version_and_changes_nothing(broker: Broker) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        first = await created(broker, session_id)
        second = await applied(broker, first, engine.start)
        stale, _ = commit_of(broker, first, engine.cancel(first, broker.now_ms()))
        assert await broker.commit(stale) is Outcome.CONFLICT
        assert await stored(broker, session_id) == state_json.to_json(second)
        history = await broker.history(session_id, 0, HISTORY_BYTES)
        assert history is not None
        assert len(history.events) == 2
        third = await applied(broker, second, engine.pause)
        published = await ears.until_published(3)
        assert [json.loads(each)["state"]["version"] for each in published] == [1, 2, 3]
        assert state_json.to_json(third) in published[2]


async def test_commit_refuses_the_same_version_of_another_commit(broker: Broker) -> None:
    """Two states are the same only if epoch, version and commit are."""
    async with started(broker):
        first = await created(broker, new_id())
        imposter = structs.replace(first, commit=secrets.token_urlsafe(6))
        commit, _ = commit_of(broker, imposter, engine.start(imposter, broker.now_ms()))
        assert await broker.commit(commit) is Outcome.CONFLICT
        another_epoch = structs.replace(first, epoch=new_epoch(broker.now_ms() + 1))
        commit, _ = commit_of(broker, another_epoch, engine.start(another_epoch, broker.now_ms()))
        assert await broker.commit(commit) is Outcome.CONFLICT
        assert await stored(broker, first.session_id) == state_json.to_json(first)


async def test_commit_refuses_where_the_session_is_gone(broker: Broker) -> None:
    async with started(broker):
        session = await created(broker, new_id())
        commit, _ = commit_of(broker, session, engine.start(session, broker.now_ms()))
        assert await broker.delete(session.session_id)
        assert await broker.commit(commit) is Outcome.CONFLICT
        assert await stored(broker, session.session_id) is None


async def test_a_commit_offered_twice_is_applied_once_and_answers_applied_twice(broker: Broker) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        creating, session = creation(broker, session_id)
        starting, session = commit_of(broker, session, engine.start(session, broker.now_ms()))
        for commit in (creating, starting):
            assert await broker.commit(commit) is Outcome.APPLIED
            assert await broker.commit(commit) is Outcome.APPLIED
        history = await broker.history(session_id, 0, HISTORY_BYTES)
        assert history is not None
        assert [json.loads(event)["version"] for event in history.events] == [1, 2]
        await broker.publish(session_id, b'{"type":"LAST"}')
        await ears.until(lambda ears: ears.relayed and len(ears.published) >= 2)
        assert len(ears.published) == 2


async def test_a_commit_offered_again_after_another_is_not_applied_again(broker: Broker) -> None:
    async with started(broker):
        first = await created(broker, new_id())
        starting, second = commit_of(broker, first, engine.start(first, broker.now_ms()))
        assert await broker.commit(starting) is Outcome.APPLIED
        third = await applied(broker, second, engine.pause)
        assert await broker.commit(starting) is Outcome.CONFLICT
        assert await stored(broker, first.session_id) == state_json.to_json(third)


async def test_of_many_commits_on_one_state_one_is_applied(broker: Broker) -> None:
    async with started(broker):
        session = await created(broker, new_id())
        now_ms = broker.now_ms()
        commits = [commit_of(broker, session, engine.start(session, now_ms))[0] for _ in range(20)]
        outcomes = await asyncio.gather(*map(broker.commit, commits))
        assert outcomes.count(Outcome.APPLIED) == 1
        assert outcomes.count(Outcome.CONFLICT) == 19
        winner = commits[outcomes.index(Outcome.APPLIED)]
        assert await stored(broker, session.session_id) == winner.state


# --- time ----------------------------------------------------------------------------------------


async def test_now_ms_never_goes_back(broker: Broker) -> None:
    async with started(broker):
        last_ms = 0
        for turn in range(20_000):
            now_ms = broker.now_ms()
            assert now_ms >= last_ms
            last_ms = now_ms
            if turn % 1_000 == 0:
                await broker.load([new_id()])


async def test_what_is_shown_is_the_brokers_time_within_its_error(broker: Broker) -> None:
    async with started(broker):
        for _ in range(10):
            before_ms, error_ms = broker.now_ms(), broker.error_ms()
            shown_us, shown_ms = broker.shown_us(), broker.shown_ms()
            after_ms = broker.now_ms()
            assert before_ms - error_ms <= shown_us / 1000 <= after_ms + 1 + error_ms
            assert shown_us // 1000 <= shown_ms
            await broker.load([new_id()])


async def test_an_expiry_that_is_not_due_yet_is_the_wrong_time(broker: Broker) -> None:
    async with started(broker):
        session = await created(broker, new_id(), mode=Mode.GLOBAL, total_time_ms=HOUR_MS)
        running = await applied(broker, session, engine.start)
        assert running.deadline_ms is not None
        early, _ = commit_of(broker, running, engine.settle(running, running.deadline_ms), settled=1)
        assert await broker.commit(early) is Outcome.WRONG_TIME
        assert await stored(broker, session.session_id) == state_json.to_json(running)
        history = await broker.history(session.session_id, 0, HISTORY_BYTES)
        assert history is not None
        assert len(history.events) == 2


async def test_an_expiry_that_is_due_is_applied(broker: Broker) -> None:
    async with started(broker):
        running = await fell_due(broker, new_id())
        over = await applied(broker, running, engine.settle, settled=1)
        assert await stored(broker, running.session_id) == state_json.to_json(over)


async def test_an_expiry_is_applied_from_its_very_deadline_on(broker: Broker) -> None:
    async with started(broker):
        session = await created(broker, new_id(), mode=Mode.GLOBAL, total_time_ms=150)
        running = await applied(broker, session, engine.start)
        assert running.deadline_ms is not None
        step = engine.settle(running, running.deadline_ms)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                outcome = await broker.commit(commit_of(broker, running, step, settled=1)[0])
                if outcome is Outcome.APPLIED:
                    break
                assert outcome is Outcome.WRONG_TIME
                await asyncio.sleep(0.005)
        # It knows its own time to within a few ms of the store's, or how far it may be off.
        assert broker.now_ms() >= running.deadline_ms - max(20, broker.error_ms())


@pytest.mark.parametrize("off_ms", [HOUR_MS, -HOUR_MS], ids=["ahead", "behind"])
async def test_an_instant_that_is_not_the_brokers_is_the_wrong_time(broker: Broker, off_ms: int) -> None:
    async with started(broker):
        commit, _ = creation(broker, new_id())
        assert (
            await broker.commit(structs.replace(commit, now_ms=commit.now_ms + off_ms)) is Outcome.WRONG_TIME
        )
        assert await stored(broker, commit.session_id) is None
        assert await broker.history(commit.session_id, 0, HISTORY_BYTES) is None


@pytest.mark.parametrize("ahead_ms", [60_000, HOUR_MS])
async def test_where_the_clock_was_set_back_a_change_is_dated_at_the_state_it_changes(
    broker: Broker, ahead_ms: int
) -> None:
    async with started(broker):
        state_ms = broker.now_ms() + ahead_ms
        first = await created(broker, new_id(), mode=Mode.GLOBAL, total_time_ms=1000)
        first = structs.replace(first, updated_at_ms=state_ms)
        commit, second = commit_of(broker, first, engine.start(first, state_ms))
        dated = structs.replace(commit, now_ms=state_ms)
        for wrong in (
            structs.replace(dated, now_ms=state_ms + 1),
            structs.replace(dated, not_before_ms=state_ms - 1),
            structs.replace(dated, now_ms=broker.now_ms() - 2_100),
            structs.replace(dated, due_ms=state_ms + 1),
        ):
            assert await broker.commit(wrong) is Outcome.WRONG_TIME
        assert await broker.commit(structs.replace(dated, due_ms=state_ms)) is Outcome.APPLIED
        assert await stored(broker, first.session_id) == state_json.to_json(second)


async def test_a_creation_whose_epoch_is_not_above_the_last_is_refused_naming_it(broker: Broker) -> None:
    async with started(broker):
        lower = [next_epoch(), next_epoch()]
        last = await created(broker, new_id())
        for epoch in (*lower, last.epoch):
            at_ms = broker.now_ms()
            another = new_id_beside(last.session_id)
            commit, _ = commit_of(broker, None, engine.create(spec(another), epoch, at_ms))
            with pytest.raises(EpochTooLow) as refused:
                await broker.commit(commit)
            assert refused.value.last == last.epoch
            assert await stored(broker, commit.session_id) is None
        assert (await created(broker, new_id())).epoch > last.epoch


async def test_an_epoch_is_not_given_again_when_its_session_is_gone(broker: Broker) -> None:
    async with started(broker):
        session = await created(broker, new_id())
        assert await broker.delete(session.session_id)
        again = engine.create(spec(session.session_id), session.epoch, broker.now_ms())
        with pytest.raises(EpochTooLow):
            await broker.commit(commit_of(broker, None, again)[0])


# --- history -------------------------------------------------------------------------------------


async def test_there_is_one_event_for_each_version_in_order(broker: Broker) -> None:
    async with started(broker):
        session = await created(broker, new_id())
        session = await applied(broker, session, engine.start)
        session = await applied(broker, session, engine.switch, engine.switch, engine.switch)
        await applied(broker, session, engine.complete)
        history = await broker.history(session.session_id, 0, HISTORY_BYTES)
        assert history is not None
        assert (history.epoch, history.first_version) == (session.epoch, 1)
        told = [json.loads(event) for event in history.events]
        assert [each["version"] for each in told] == [1, 2, 3, 4, 5, 6]
        types = ["created", "started", "switched", "switched", "switched", "completed"]
        assert [each["type"] for each in told] == types


async def test_the_last_thousand_events_are_kept(broker: Broker) -> None:
    async with started(broker):
        session = await created(broker, new_id(), mode=Mode.COUNT_UP)
        session = await applied(broker, session, engine.start)
        for _ in range(2):
            session = await applied(broker, session, *[engine.switch] * 499)
        exactly = await broker.history(session.session_id, 0, HISTORY_BYTES)
        session = await applied(broker, session, *[engine.switch] * 3)
        more = await broker.history(session.session_id, 0, HISTORY_BYTES)
        assert exactly is not None
        assert more is not None
        assert (exactly.first_version, len(exactly.events)) == (1, 1000)
        assert (more.first_version, len(more.events)) == (4, 1000)
        assert [json.loads(event)["version"] for event in more.events] == list(range(4, 1004))


async def test_history_goes_on_behind_a_version_in_pages(broker: Broker) -> None:
    async with started(broker):
        session = await created(broker, new_id(), mode=Mode.COUNT_UP)
        session = await applied(broker, session, engine.start)
        session = await applied(broker, session, *[engine.switch] * 98)
        whole = await broker.history(session.session_id, 0, HISTORY_BYTES)
        assert whole is not None
        sizes = [len(event) + 1 for event in whole.events]
        for since, count in ((0, 1), (0, 2), (1, 3), (50, 17), (60, 40), (99, 1)):
            exactly = sum(sizes[since : since + count])
            # One where there is one, however little is asked for.
            for max_bytes, told in ((exactly, count), (exactly - 1, max(1, count - 1))):
                page = await broker.history(session.session_id, since, max_bytes)
                assert page is not None
                assert (page.epoch, page.version, page.first_version) == (session.epoch, 100, since + 1)
                assert page.events == whole.events[since : since + told]
                assert page.next_since == (None if since + told == 100 else since + told)
        for since in (100, 101, 2**53 - 1):
            page = await broker.history(session.session_id, since, HISTORY_BYTES)
            assert page is not None
            assert (page.first_version, page.events, page.next_since) == (101, [], None)


async def test_there_is_no_history_of_no_session(broker: Broker) -> None:
    async with started(broker):
        assert await broker.history(new_id(), 0, HISTORY_BYTES) is None


async def test_a_creation_removes_what_a_deleted_session_left(broker: Broker) -> None:
    async with started(broker):
        session_id = new_id()
        old = await fell_due(broker, session_id)
        assert await broker.delete(session_id)
        assert await broker.history(session_id, 0, HISTORY_BYTES) is None
        new = await created(broker, session_id)
        history = await broker.history(session_id, 0, HISTORY_BYTES)
        assert history is not None
        assert (history.epoch, history.first_version, len(history.events)) == (new.epoch, 1, 1)
        assert new.epoch > old.epoch
        assert session_id not in [due_id for _, due_id in await broker.due(HOUR_MS, 100)]


# --- delete --------------------------------------------------------------------------------------


async def test_delete_removes_the_session_and_publishes_its_epoch(broker: Broker) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        session = await fell_due(broker, session_id)
        assert await broker.delete(session_id) is True
        assert await stored(broker, session_id) is None
        assert await broker.beginnings([session_id]) == [None]
        assert await broker.page((0, ""), 10) == []
        assert await broker.due(HOUR_MS, 10) == []
        published = await ears.until_published(3)
        assert re.fullmatch(
            rf'\{{"type":"SESSION_DELETED","sessionId":"{session_id}","timestamp":\d{{13}},'
            rf'"epoch":"{session.epoch}","deleted":true\}}',
            published[2].decode(),
        )


async def test_deleting_what_is_not_there_is_false_and_publishes_nothing(broker: Broker) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        assert await broker.delete(session_id) is False
        await created(broker, session_id)
        assert await broker.delete(session_id) is True
        assert await broker.delete(session_id) is False
        await created(broker, session_id)
        await ears.until(lambda ears: len(ears.published) >= 3)
        types = [json.loads(payload)["type"] for payload in ears.published]
        assert types == ["STATE_UPDATE", "SESSION_DELETED", "STATE_UPDATE"]


async def test_of_many_deletions_at_once_one_is_true(broker: Broker) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        await created(broker, session_id)
        outcomes = await asyncio.gather(*(broker.delete(session_id) for _ in range(10)))
        assert outcomes.count(True) == 1
        await created(broker, session_id)
        await ears.until(lambda ears: len(ears.published) >= 3)
        assert len(ears.published) == 3


# --- publications --------------------------------------------------------------------------------


async def test_a_commit_is_published_once_to_the_letter(broker: Broker) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        session = await created(broker, session_id)
        session = await applied(broker, session, engine.start)
        step = engine.switch(session, broker.now_ms())
        step = step.followed_by(engine.switch(step.session, broker.now_ms()))
        commit, session = commit_of(broker, session, step)
        assert await broker.commit(commit) is Outcome.APPLIED
        published = await ears.until_published(3)
        assert (
            published[2]
            == (
                f'{{"type":"STATE_UPDATE","sessionId":"{session_id}","timestamp":{commit.now_ms},"state":'
            ).encode()
            + commit.state
            + b"}"
        )
        assert re.match(
            rf'\{{"type":"STATE_UPDATE","sessionId":"{session_id}","timestamp":\d{{13}},"state":'
            rf'\{{"session_id":"{session_id}","epoch":"{session.epoch}","version":4,'
            rf'"commit":"{session.commit}","deadline_ms":{session.deadline_ms},',
            published[2].decode(),
        )


@pytest.mark.parametrize(
    "update",
    [
        b'{"type":"UPDATE"}',
        '{"type":"UPDATE","note":"Zo\u00eb / \u2028 \\\\ % %% %s %08d"}'.encode(),
        b'{"note":"' + b"x" * 200_000 + b'"}',
    ],
    ids=["short", "of all characters", "long"],
)
async def test_an_update_is_published_behind_the_state_and_its_length_last(
    broker: Broker, update: bytes
) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        session = await created(broker, session_id)
        commit, session = commit_of(broker, session, engine.start(session, broker.now_ms()))
        assert await broker.commit(structs.replace(commit, update=update)) is Outcome.APPLIED
        (_, published) = await ears.until_published(2)
        plain = protocol_v1.state_update(session_id, commit.now_ms, commit.state)
        tail = b',"updateBytes":"' + f"{len(update):08}".encode() + b'"}'
        assert published == plain.removesuffix(b"}") + b',"update":' + update + tail
        assert published == payloads.published(session_id, commit.now_ms, commit.state, update)
        assert json.loads(published)["update"] == json.loads(update)
        # What is stored has nothing of it.
        assert await stored(broker, session_id) == commit.state
        history = await broker.history(session_id, 1, HISTORY_BYTES)
        assert history is not None
        assert history.events == list(commit.events)


async def test_the_updates_of_a_session_arrive_in_order(broker: Broker) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        session = await created(broker, session_id)
        session = await applied(broker, session, engine.start)
        for _ in range(50):
            session = await applied(broker, session, engine.switch)
        published = await ears.until_published(52)
        assert [json.loads(each)["state"]["version"] for each in published] == list(range(1, 53))


async def test_nothing_is_heard_inside_the_call_that_published_it(broker: Broker) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        session = await created(broker, session_id)
        await applied(broker, session, engine.start)
        await broker.publish(session_id, b'{"type":"HELLO"}')
        await broker.delete(session_id)
        await ears.until(lambda ears: len(ears.published) >= 3 and ears.relayed)
        assert asyncio.current_task() not in ears.tasks


async def test_a_message_reaches_the_listener_as_it_was_given(broker: Broker) -> None:
    session_id, other_id = new_id(), new_id()
    given = [
        '{"type":"CHAT","text":"né"}'.encode(),
        b'{ "type" : "X" }',
        b'{"type":"' + b"L" * 60_000 + b'"}',
    ]
    async with started(broker, session_id, other_id) as ears:
        for each in (session_id, other_id):
            await created(broker, each)
        for message in given:
            assert await broker.publish(session_id, message)
        assert await broker.publish(other_id, b'{"type":"LAST"}')
        await ears.until(lambda ears: len(ears.relayed) >= 4)
        # Between sessions there is no order: they may be at two masters.
        relayed = defaultdict(list)
        for each, message in ears.relayed:
            relayed[each].append(message)
        assert relayed == {session_id: given, other_id: [b'{"type":"LAST"}']}
        assert len(ears.published) == 2


async def test_a_message_to_a_session_that_is_not_there_reaches_nobody(broker: Broker) -> None:
    session_id, other_id = new_id(), new_id()
    async with started(broker, session_id, other_id) as ears:
        await created(broker, other_id)
        assert not await broker.publish(session_id, b'{"type":"LOST"}')
        assert await broker.publish(other_id, b'{"type":"LAST"}')
        await ears.until(lambda ears: ears.relayed)
        assert ears.relayed == [(other_id, b'{"type":"LAST"}')]


async def test_a_notice_comes_among_the_updates_of_its_session_and_to_nobody_else(broker: Broker) -> None:
    session_id, other_id = new_id(), new_id()
    notice = b'{"type":"NOTICE","sessionId":"' + session_id.encode() + b'"}'
    async with started(broker, session_id) as ears:
        for each in (session_id, other_id):
            await created(broker, each)
        assert not await broker.publish(new_id(), b'{"type":"LOST"}', is_notice=True)
        assert await broker.publish(session_id, notice, once_of(), is_notice=True)
        await broker.delete(session_id)
        await ears.until(lambda ears: any(b"SESSION_DELETED" in each for each in ears.published))
        of_it = [each for each in ears.published if session_id.encode() in each]
        assert [json.loads(each)["type"] for each in of_it] == ["STATE_UPDATE", "NOTICE", "SESSION_DELETED"]
        assert of_it[1] == notice
        assert not any(b"LOST" in each for each in ears.published)
        assert ears.relayed == []


# --- requests that are done once -----------------------------------------------------------------


FIRST, SECOND = b'{"nth":1}\nanswer', b'{"nth":2}\nanswer'


def once_of(record: bytes = FIRST, kept_ms: int = 60_000) -> IdempotencyRecord:
    return IdempotencyRecord(uuid4().hex, record, kept_ms)


async def kept(broker: Broker, session_id: str, once: IdempotencyRecord) -> bytes | None:
    _, record = await broker.recall(new_id_beside(session_id), once.key)
    return record


async def test_a_commit_with_a_known_key_is_not_made_and_its_record_is_told(broker: Broker) -> None:
    session_id, once = new_id(), once_of()
    async with started(broker, session_id):
        session = await created(broker, session_id)
        assert (await broker.recall(session_id, once.key))[1] is None
        starting, running = commit_of(broker, session, engine.start(session, broker.now_ms()))
        assert await broker.commit(structs.replace(starting, record=once)) is Outcome.APPLIED
        before = await broker.recall(session_id, once.key)
        assert before == [await stored(broker, session_id), FIRST]
        assert await broker.commit(structs.replace(starting, record=once)) is Outcome.APPLIED, (
            "it is ourselves"
        )
        for stale in (session, running):  # also where it would be a conflict anyway
            rule = engine.start if stale is session else engine.switch
            again, _ = commit_of(broker, stale, rule(stale, broker.now_ms()))
            with pytest.raises(AlreadyDone) as caught:
                await broker.commit(structs.replace(again, record=structs.replace(once, content=SECOND)))
            assert caught.value.content == FIRST
        assert await broker.recall(session_id, once.key) == before


async def test_a_commit_that_is_refused_leaves_its_key_unused(broker: Broker) -> None:
    session_id, once = new_id(), once_of()
    async with started(broker, session_id):
        await created(broker, session_id)
        second, _ = creation(broker, session_id)
        assert await broker.commit(structs.replace(second, record=once)) is Outcome.CONFLICT
        assert await kept(broker, session_id, once) is None


async def test_a_message_with_a_known_key_is_not_sent_again(broker: Broker) -> None:
    session_id, once = new_id(), once_of()
    async with started(broker, session_id) as ears:
        assert not await broker.publish(session_id, b'{"type":"LOST"}', once)
        session = await created(broker, session_id)
        assert await broker.publish(session_id, b'{"type":"NOTE"}', once)
        with pytest.raises(AlreadyDone) as caught:
            await broker.publish(session_id, b'{"type":"NOTE"}', once)
        assert caught.value.content == once.with_epoch(session.epoch)
        head, answer = caught.value.content.split(b"\n")
        assert (json.loads(head), answer) == ({"epoch": session.epoch, "nth": 1}, b"answer")
        await broker.publish(session_id, b'{"type":"LAST"}')
        await ears.until(lambda ears: len(ears.relayed) >= 2)
        assert [message for _, message in ears.relayed] == [b'{"type":"NOTE"}', b'{"type":"LAST"}']


@pytest.mark.parametrize("was_there", [True, False])
async def test_a_deletion_with_a_known_key_never_touches_a_later_epoch(
    broker: Broker, was_there: bool
) -> None:
    session_id, once = new_id(), once_of()
    async with started(broker, session_id) as ears:
        expected = b""
        if was_there:
            expected = heads.beginning(await created(broker, session_id))
        assert await broker.delete(session_id, expected, once) is was_there
        assert await kept(broker, session_id, once) == FIRST, "kept also where there was none"
        await created(broker, session_id)
        there = await stored(broker, session_id)
        for begins in (None, expected, heads.beginning_of(session_id)):
            with pytest.raises(AlreadyDone) as caught:
                await broker.delete(session_id, begins, structs.replace(once, content=SECOND))
            assert caught.value.content == FIRST
        assert await broker.delete(session_id, None, once) is False, "it is ourselves"
        assert await stored(broker, session_id) == there
        assert await broker.delete(session_id) is True
        await ears.until_published(4 if was_there else 2)


async def test_a_deletion_takes_only_what_it_expects(broker: Broker) -> None:
    session_id, once = new_id(), once_of()
    async with started(broker, session_id):
        session = await created(broker, session_id)
        other_epoch = heads.beginning_of(session_id, "0000000000000")
        _, elsewhere = creation(broker, new_id())
        for expected in (b"", other_epoch, heads.beginning(elsewhere)):
            assert await broker.delete(session_id, expected) is False
        starting, running = commit_of(broker, session, engine.start(session, broker.now_ms()))
        assert await broker.commit(starting) is Outcome.APPLIED
        assert await broker.delete(session_id, heads.beginning(session), once) is False
        assert await kept(broker, session_id, once) is None, "whoever finds that it has moved decides again"
        assert await stored(broker, session_id) == state_json.to_json(running)
        assert await broker.delete(session_id, heads.beginning(running), once) is True
        assert (await stored(broker, session_id), await kept(broker, session_id, once)) == (None, FIRST)


async def test_a_deletion_of_an_epoch_takes_whatever_has_become_of_it(broker: Broker) -> None:
    session_id = new_id()
    async with started(broker, session_id):
        session = await created(broker, session_id)
        starting, _ = commit_of(broker, session, engine.start(session, broker.now_ms()))
        assert await broker.commit(starting) is Outcome.APPLIED
        assert await broker.delete(session_id, heads.beginning_of(session_id, session.epoch)) is True


async def test_a_key_is_forgotten_when_its_time_is_over(broker: Broker) -> None:
    session_id, brief, lasting = new_id(), once_of(kept_ms=200), once_of(SECOND)
    async with started(broker, session_id):
        await created(broker, session_id)
        for once in (brief, lasting):
            assert await broker.publish(session_id, b'{"type":"NOTE"}', once)
        async with asyncio.timeout(PATIENCE_S):
            while await kept(broker, session_id, brief) is not None:
                await asyncio.sleep(0.01)
        assert await kept(broker, session_id, lasting) is not None
        assert await broker.publish(session_id, b'{"type":"NOTE"}', brief)


async def test_hearing_again_after_leaving_is_hearing(broker: Broker) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        broker.unhear(session_id)
        assert await broker.hear(session_id)
        await created(broker, session_id)
        await ears.until_published(1)
        broker.unhear(session_id)


async def test_a_broker_that_has_started_is_ready(broker: Broker) -> None:
    async with started(broker):
        assert broker.not_ready() == []


# --- reading -------------------------------------------------------------------------------------


async def test_load_answers_in_the_order_asked_for(broker: Broker) -> None:
    async with started(broker):
        sessions = [await created(broker, new_id()) for _ in range(5)]
        a, b, c, d, e = (session.session_id for session in sessions)
        states = {session.session_id: state_json.to_json(session) for session in sessions}
        missing = new_id()
        asked = [d, missing, a, a, e, missing, c, b]
        assert await broker.load(asked) == [states.get(session_id) for session_id in asked]
        assert await broker.load([]) == []


async def test_a_bounded_load_stops_in_time_but_not_before_the_first(broker: Broker) -> None:
    async with started(broker):
        large = [await created(broker, new_id(), metadata={"text": "x" * 3_000}) for _ in range(3)]
        asked = [large[0].session_id, new_id(), large[1].session_id, large[2].session_id]
        loaded = await broker.load(asked)
        size = len(loaded[0] or b"")
        assert await broker.load(asked, 1) == loaded[:1]
        assert await broker.load(asked, 2 * size - 1) == loaded[:2]
        assert await broker.load(asked, 2 * size + 10) == loaded[:3]
        assert await broker.load(asked, 10 * size) == loaded


async def test_recent_is_the_state_and_the_last_events_that_there_is_room_for(broker: Broker) -> None:
    async with started(broker):
        session = await created(broker, new_id(), mode=Mode.COUNT_UP)
        session = await applied(broker, session, engine.start)
        session = await applied(broker, session, *[engine.switch] * 98)
        state = await stored(broker, session.session_id)
        history = await broker.history(session.session_id, 0, HISTORY_BYTES)
        assert history is not None
        assert len(history.events) == 100
        sizes = [len(event) for event in history.events]
        for count in (0, 1, 2, 3, 4, 16, 31, 32, 50, 99, 100, 101, 1_000):
            last = history.events[100 - count :] if 0 < count < 100 else history.events[:count]
            assert await broker.recent(session.session_id, count, HISTORY_BYTES) == (state, last)
        for count in (1, 2, 7, 98, 99):
            exactly, last = sum(sizes[-count:]), history.events[-count:]
            assert await broker.recent(session.session_id, 1_000, exactly) == (state, last)
            assert await broker.recent(session.session_id, 1_000, exactly - 1) == (state, last[1:])
        assert await broker.recent(session.session_id, 1_000, 0) == (state, [])


async def test_recent_is_of_one_instant(broker: Broker) -> None:
    async with started(broker):
        session = await applied(broker, await created(broker, new_id(), mode=Mode.COUNT_UP), engine.start)
        asked = []
        for _ in range(30):
            asked += [asyncio.create_task(broker.recent(session.session_id, 3, HISTORY_BYTES))]
            session = await applied(broker, session, engine.switch, engine.switch)
        for state, events in await asyncio.gather(*asked):
            head = heads.read_head(state or b"")
            assert head is not None
            last = head.order[1]
            versions = [json.loads(event)["version"] for event in events]
            assert versions == list(range(max(1, last - 2), last + 1))
            assert json.loads(events[-1])["changes"]["commit"] == head.commit


async def test_of_no_session_nothing_is_recent(broker: Broker) -> None:
    async with started(broker):
        assert await broker.recent(new_id(), 10, HISTORY_BYTES) == (None, [])
        ended = await created(broker, new_id())
        await broker.delete(ended.session_id)
        assert await broker.recent(ended.session_id, 10, HISTORY_BYTES) == (None, [])


async def test_what_is_no_state_has_no_recent_events(broker: Broker) -> None:
    async with started(broker):
        commit, _ = creation(broker, new_id())
        assert await broker.commit(structs.replace(commit, state=b"damaged")) is Outcome.APPLIED
        assert await broker.recent(commit.session_id, 10, HISTORY_BYTES) == (b"damaged", [])


async def test_recent_events_are_of_this_epoch(broker: Broker) -> None:
    async with started(broker):
        session_id = new_id()
        old = await applied(broker, await created(broker, session_id), engine.start, engine.pause)
        assert await broker.delete(session_id)
        new = await created(broker, session_id)
        state, events = await broker.recent(session_id, 10, HISTORY_BYTES)
        assert state == state_json.to_json(new)
        assert [json.loads(event)["changes"]["epoch"] for event in events] == [new.epoch]
        assert new.version < old.version


async def test_beginnings_are_the_first_bytes_of_what_load_gives(broker: Broker) -> None:
    async with started(broker):
        small, due = await created(broker, new_id()), await fell_due(broker, new_id())
        big = await created(broker, new_id(), metadata={"text": "x" * 4_000})
        asked = [big.session_id, new_id(), due.session_id, small.session_id]
        loaded, begun = await broker.load(asked), await broker.beginnings(asked)
        assert begun[1] is None
        for session, whole, beginning in zip((big, None, due, small), loaded, begun, strict=True):
            if session is None or beginning is None or whole is None:
                continue
            assert whole.startswith(beginning)
            head = heads.read_head(beginning)
            assert head is not None
            assert head == heads.read_head(whole)
            assert head.deadline_ms == session.deadline_ms
        assert len(begun[0] or b"") < 1_000
        assert await broker.beginnings([]) == []


async def test_pages_go_through_all_sessions_once_in_the_order_of_lapse(broker: Broker) -> None:
    async with started(broker):
        lapses = [60_000, 50_000, 60_000, 90_000, 50_000, 70_000, 80_000]
        instant_ms = broker.now_ms()
        expected = []
        for lapses_in_ms in lapses:
            commit, _ = creation(broker, new_id())
            commit = structs.replace(commit, lapses_at_ms=instant_ms + lapses_in_ms)
            assert await broker.commit(commit) is Outcome.APPLIED
            expected.append((commit.lapses_at_ms, commit.session_id))
        expected.sort()
        for limit in (1, 2, 3, 7, 100):
            found: list[tuple[int, str]] = []
            while page := await broker.page(found[-1] if found else (0, ""), limit):
                assert len(page) <= limit
                found += page
                assert len(found) <= len(expected)
            assert found == expected


async def test_pages_are_complete_where_all_lapse_at_the_same_instant(broker: Broker) -> None:
    async with started(broker):
        lapses_at_ms = broker.now_ms() + HOUR_MS
        for _ in range(9):
            commit, _ = creation(broker, new_id())
            assert await broker.commit(structs.replace(commit, lapses_at_ms=lapses_at_ms)) is Outcome.APPLIED
        found: list[tuple[int, str]] = []
        while page := await broker.page(found[-1] if found else (0, ""), 2):
            found += page
        assert len(set(found)) == len(found) == 9
        assert found == sorted(found)


async def test_a_place_that_is_gone_is_still_a_place_to_go_on_from(broker: Broker) -> None:
    async with started(broker):
        for _ in range(4):
            await created(broker, new_id(), lapses_in_ms=HOUR_MS)
        everything = await broker.page((0, ""), 10)
        assert await broker.delete(everything[1][1])
        assert await broker.page(everything[1], 10) == everything[2:]


async def test_due_tells_what_falls_due_ahead_earliest_first(broker: Broker) -> None:
    async with started(broker):
        deadlines = []
        for seconds in (600, 10, 300):
            session = await created(broker, new_id(), mode=Mode.GLOBAL, total_time_ms=seconds * 1_000)
            session = await applied(broker, session, engine.start)
            assert session.deadline_ms is not None
            deadlines.append((session.deadline_ms, session.session_id))
        long_due = await fell_due(broker, new_id())
        assert long_due.deadline_ms is not None
        deadlines.append((long_due.deadline_ms, long_due.session_id))
        await created(broker, new_id())
        deadlines.sort()
        assert await broker.due(0, 10) == deadlines[:1]
        assert await broker.due(60_000, 10) == deadlines[:2]
        assert await broker.due(900_000, 10) == deadlines
        assert await broker.due(900_000, 3) == deadlines[:3]


async def test_what_has_no_deadline_any_more_is_not_due(broker: Broker) -> None:
    async with started(broker):
        session = await created(broker, new_id(), mode=Mode.GLOBAL, total_time_ms=10_000)
        running = await applied(broker, session, engine.start)
        assert running.deadline_ms is not None
        paused = await applied(broker, running, engine.pause)
        assert await broker.due(HOUR_MS, 10) == []
        resumed = await applied(broker, paused, engine.resume)
        assert await broker.due(HOUR_MS, 10) == [(resumed.deadline_ms, session.session_id)]
        await applied(broker, resumed, engine.complete)
        assert await broker.due(HOUR_MS, 10) == []


# --- how long a session is kept ------------------------------------------------------------------


async def test_a_session_that_lapses_is_announced_like_a_deletion_and_gone(broker: Broker) -> None:
    session_id, other_id = new_id(), new_id()
    async with started(broker, session_id, other_id) as ears:
        session = await created(broker, session_id, lapses_in_ms=200)
        other = await created(broker, other_id)
        ((lapses_at_ms, _), *_) = await broker.page((0, ""), 1)
        assert lapses_at_ms > 0
        await reached(broker, lapses_at_ms + 30)
        assert await broker.lapse(100) == 1
        published = await ears.until_published(3)
        end = json.loads(published[2])
        assert end["type"] == "SESSION_DELETED"
        assert (end["sessionId"], end["epoch"], end["deleted"]) == (session_id, session.epoch, True)
        assert await broker.load([session_id, other_id]) == [None, state_json.to_json(other)]
        assert await broker.history(session_id, 0, HISTORY_BYTES) is None
        assert [each for _, each in await broker.page((0, ""), 10)] == [other_id]
        assert await broker.lapse(100) == 0
        assert await broker.delete(session_id) is False


async def test_no_more_than_the_limit_lapse_at_once(broker: Broker) -> None:
    async with started(broker):
        for _ in range(5):
            await created(broker, new_id(), lapses_in_ms=50)
        await reached(broker, broker.now_ms() + 100)
        assert [await broker.lapse(2) for _ in range(4)] == [2, 2, 1, 0]


async def lapse_of(broker: Broker, session_id: str) -> int:
    return {each: lapses_at_ms for lapses_at_ms, each in await broker.page((0, ""), 1_000)}[session_id]


async def test_a_command_prolongs_and_shortens(broker: Broker) -> None:
    async with started(broker):
        session = await created(broker, new_id(), lapses_in_ms=HOUR_MS)
        first_ms = await lapse_of(broker, session.session_id)
        session = await applied(broker, session, engine.start, lapses_in_ms=5 * HOUR_MS)
        assert await lapse_of(broker, session.session_id) >= first_ms + 4 * HOUR_MS - 1_000
        await applied(broker, session, engine.complete, lapses_in_ms=60_000)
        assert await lapse_of(broker, session.session_id) < first_ms


async def test_an_expiry_never_prolongs(broker: Broker) -> None:
    async with started(broker):
        running = await fell_due(broker, new_id())
        before_ms = await lapse_of(broker, running.session_id)
        await applied(broker, running, engine.settle, settled=1, lapses_in_ms=30 * ONE_DAY_MS)
        assert await lapse_of(broker, running.session_id) == before_ms


async def test_an_expiry_shortens(broker: Broker) -> None:
    async with started(broker):
        running = await fell_due(broker, new_id())
        before_ms = await lapse_of(broker, running.session_id)
        await applied(broker, running, engine.settle, settled=1, lapses_in_ms=HOUR_MS)
        assert await lapse_of(broker, running.session_id) < before_ms


async def test_a_lapsed_session_gives_way_to_a_new_one_of_its_id(broker: Broker) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        old = await created(broker, session_id, lapses_in_ms=50)
        await reached(broker, await lapse_of(broker, session_id) + 30)
        assert await broker.lapse(10) == 1
        new = await created(broker, session_id)
        assert await broker.lapse(10) == 0
        published = [json.loads(payload) for payload in await ears.until_published(3)]
        types = [each["type"] for each in published]
        assert types == ["STATE_UPDATE", "SESSION_DELETED", "STATE_UPDATE"]
        assert published[1]["epoch"] == old.epoch
        assert published[2]["state"]["epoch"] == new.epoch


# --- presence ------------------------------------------------------------------------------------
# What several processes say to each other is in test_presence_broker.py.


async def test_what_a_process_says_of_its_own_clients_is_not_told_to_itself(broker: Broker) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        await created(broker, session_id)
        for subject in ("", "ann", "two words", "Zoë", "\x00", '"', "x" * 1024):
            broker.attend(session_id, subject, Attendance(2, broker.now_ms()))
        broker.attend(session_id, "ann", None)
        broker.attend(session_id, "nobody", None)
        assert await broker.present(session_id) == {}
        await asyncio.sleep(0.1)
        assert await broker.present(session_id) == {}
        broker.forget_session(session_id)
        broker.forget_session(new_id())
        assert await broker.delete(session_id)
        await ears.until_published(2)
        await asyncio.sleep(0.1)
        assert await broker.present(session_id) == {}
        assert ears.presence == []
