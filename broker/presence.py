"""Who is connected to a session: what this process says of its clients in Redis, and what others say."""

import asyncio
import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

import hiredis

from broker.calls import execute
from broker.keys import Channels, Keys, glob_escaped
from broker.link import REFUSED, CommandLink
from broker.marks import NO_CHANGES
from broker.resp import Argument, LinkDown
from broker.scan import pages
from broker.script import Script
from broker.sweep import Sweep
from lockstep.contract import Attendance, Presence
from lockstep.errors import BrokerUnavailable
from lockstep.tasks import Tasks, all_ended
from lockstep.wire import attendances

log = logging.getLogger(__name__)

# A change waits so long for others, to be told with them.
TELL_AFTER_S = 0.05
# Redis keeps so long what nobody renews. It is renewed, and looked at, four times in that while.
KEPT_S = 3600
# Sessions in one round trip; subjects in one step of Redis, and the bytes of their names.
SESSIONS_AT_ONCE = 100
SUBJECTS_AT_ONCE = 200
BYTES_AT_ONCE = 65_536
# Where Redis was away all other processes renew their signs of life in this time.
RENEWED_AFTER_S = 3.0
# A mark that begins so says that the store does not have all that a process says: see lua/settled.lua.
UNSETTLED = b"-"
# What a process is about to say again is waited for so long.
READ_AGAIN_AFTER_S = 0.1
READ_AGAIN_TIMES = 10


class PutOff(Exception):
    """Redis does not take it now."""


class RedisPresence(Presence):
    """Says each change once, and looks after what became of it.

    What was refused or not answered is said again. Where the store may have lost something (it was away, it
    is another one, it has forgotten this process) what it has is compared with what is so, and made that.
    The mark of the process in the store says when that is done: until then the others leave it out, so that
    nobody takes what is missing for a departure.
    """

    def __init__(self, link: CommandLink, keys: Keys, channels: Channels, process: str) -> None:
        self._link = link
        self._keys = keys
        self._channels = channels
        self._process = process
        self._attend = Script("attend", KEPT_S=KEPT_S, PUBLISH=channels.publish)
        self._settled = Script("settled", KEPT_S=KEPT_S)
        self._sweep = Sweep(link, keys, channels)
        # What is so, by session and subject; and the subjects whose change the store has not confirmed.
        self._present: dict[str, dict[str, Attendance]] = {}
        self._unsaid: dict[str, set[str]] = {}
        # How often there was reason to look at what the store has, and which of these reasons was met last.
        self._doubts = 1
        self._met_doubts = 0
        self._mark = b""  # that of then; empty as long as nothing was ever said
        self._has_seen_marks = False
        self._connected_at_s = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._is_saying = False
        self._is_asked_again = False
        self._is_put_off = False
        self._is_closed = False
        self._tasks = Tasks()

    async def close(self) -> None:
        """Withdraws nothing: what was said lapses, and who comes back elsewhere until then was never away."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self._sweep.close()
        await self._tasks.close()

    # --- what this process says ------------------------------------------------------------------

    def attend(self, session_id: str, subject: str, attendance: Attendance | None) -> None:
        there = self._present.setdefault(session_id, {})
        there.pop(subject, None)
        if attendance is not None:
            there[subject] = attendance
        if not there:
            del self._present[session_id]
        self._unsaid.setdefault(session_id, set()).add(subject)
        self._say_soon()

    def forget_session(self, session_id: str) -> None:
        if there := self._present.pop(session_id, None):
            self._unsaid.setdefault(session_id, set()).update(there)
            self._say_soon()

    def on_connection(self) -> None:
        """A new connection is about to be used: nobody knows what the one before has carried."""
        self._connected_at_s = asyncio.get_running_loop().time()
        self.doubt()

    def doubt(self) -> None:
        """The store may not have what this process has said: look at that, and say what it lacks."""
        self._doubts += 1
        if self._has_to_compare:
            self._say_soon()

    @property
    def is_idle(self) -> bool:
        """Nobody is present, as far as was known at the last look: another one can wait a few seconds."""
        return not (self._present or self._unsaid or self._mark or self._has_seen_marks)

    async def look(self) -> None:
        """Has the store forgotten this process, and has another one died? To be repeated each second."""
        marks = await self._marks()
        self._has_seen_marks = bool(marks)
        if self._is_settled and marks.pop(self._process, b"") != self._mark:
            self._doubts += 1
        if self._unsaid or self._has_to_compare:
            self._say_soon()
        if asyncio.get_running_loop().time() - self._connected_at_s > RENEWED_AFTER_S:
            await self._sweep.look(process for process in marks if process != self._process)

    @property
    def _is_settled(self) -> bool:
        return self._met_doubts == self._doubts

    @property
    def _has_to_compare(self) -> bool:
        return not self._is_settled and bool(self._present or self._mark)

    def _say_soon(self) -> None:
        if self._is_saying:
            self._is_asked_again = True
        elif self._timer is None and not self._is_closed:
            self._timer = asyncio.get_running_loop().call_later(TELL_AFTER_S, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._is_saying, self._is_asked_again = True, False
        self._tasks.spawn(self._say())

    async def _say(self) -> None:
        try:
            if not self._mark:
                # There is nothing that the store could have lost.
                doubts = self._doubts
                self._mark, self._met_doubts = await self._enter(b"", b"%d" % doubts), doubts
            is_all_said = await self._say_changes()
            if self._has_to_compare:
                is_all_said &= await self._compare_all()
        except (PutOff, LinkDown, BrokerUnavailable) as error:
            self._is_asked_again = False  # the next look asks
            self._note_put_off(error)
        else:
            if self._is_put_off and is_all_said:
                self._is_put_off = False
                log.warning("who is present is told again")
        finally:
            self._is_saying = False
        if self._is_asked_again:
            self._say_soon()

    def _note_put_off(self, why: object) -> None:
        if not self._is_put_off:
            self._is_put_off = True
            log.warning("who is present is told later: %s", why)

    async def _say_changes(self) -> bool:
        """False where a session's were refused. Raises an error where all have to wait."""
        is_all_said = True
        for session_ids in batches(tuple(self._unsaid), SESSIONS_AT_ONCE):
            # Nothing stays on its way behind a failure: it would undo what is said next.
            is_all_said &= all(await all_ended(map(self._say_changes_of, session_ids)))
        return is_all_said

    async def _say_changes_of(self, session_id: str) -> bool:
        unsaid = self._unsaid.pop(session_id)
        try:
            while unsaid:
                # As it is now: who has come back meanwhile has not left.
                subjects, there = first_of(unsaid), self._present.get(session_id, {})
                here = {subject: there[subject] for subject in subjects if subject in there}
                gone = [subject for subject in subjects if subject not in there]
                has_others = bool(there) or len(subjects) < len(unsaid)
                # Who has left goes by itself: a Redis without memory takes that.
                told = self._say_here(session_id, here), self._say_gone(session_id, gone, has_others)
                if not all(await all_ended(told)):
                    return False
                unsaid.difference_update(subjects)
            return True
        finally:
            if unsaid:
                self._unsaid.setdefault(session_id, set()).update(unsaid)

    async def _say_here(self, session_id: str, here: dict[str, Attendance]) -> bool:
        if not here:
            return True
        fields = [text for subject, each in here.items() for text in (self._field(subject), value_of(each))]
        message = attendances.message_of(session_id, self._process, here)
        return await self._tell(session_id, message, "there", 1, *fields)

    async def _say_gone(self, session_id: str, gone: list[str], has_others: bool) -> bool:
        if not gone:
            return True
        message = attendances.message_of(session_id, self._process, dict.fromkeys(gone))
        return await self._tell(session_id, message, "gone", int(has_others), *map(self._field, gone))

    async def _tell(self, session_id: str, message: bytes, *arguments: Argument) -> bool:
        """False where this is refused, and nothing is known against the rest."""
        keys = [
            self._keys.presence(session_id),
            self._keys.presence_of(self._process),
            self._keys.presence_processes,
        ]
        channel = self._channels.update(session_id)
        reply = await self._attend(self._link, keys, session_id, self._process, channel, message, *arguments)
        if why := refusal(reply):
            if why.startswith(NO_CHANGES):
                raise PutOff(why)
            self._note_put_off(f"session {session_id}: {why}")
            return False
        if self._is_settled and reply != self._mark:
            self._doubts += 1
        return True

    def _field(self, subject: str) -> str:
        return f"{self._process} {subject}"

    # --- what the store has ----------------------------------------------------------------------

    async def keep(self) -> None:
        """Have the store keep what is so, and put right whatever it has instead; to be repeated."""
        self.doubt()

    async def _compare_all(self) -> bool:
        """Make what the store has of this process what is so. Raises as `_say_changes`."""
        doubts, own = self._doubts, self._keys.presence_of(self._process)
        mark = await self._enter(b"", b"%b%d" % (UNSETTLED, doubts))
        await execute(self._link, "EXPIRE", own, KEPT_S)
        listed = {
            field.decode("utf-8", "replace") async for page in pages(self._link, own) for field, _ in page
        }
        is_all_said = True
        for session_ids in batches(tuple(listed | self._present.keys()), SESSIONS_AT_ONCE):
            await asyncio.gather(*(self._compare(each, each in listed) for each in session_ids))
            is_all_said &= await self._say_changes()
        # Not where the store has lost that mark meanwhile: then the look finds it.
        if settled := await self._enter(mark, b"%d" % doubts):
            self._mark, self._met_doubts = settled, doubts
        return is_all_said

    async def _enter(self, expected: bytes, mark: bytes) -> bytes:
        keys = [self._keys.presence_processes]
        reply = await self._settled(self._link, keys, self._process, expected, mark)
        if why := refusal(reply):
            raise PutOff(why)
        return bytes(reply)

    async def _compare(self, session_id: str, is_listed: bool) -> None:
        key, begin = self._keys.presence(session_id), len(self._field(""))
        stored: dict[str, bytes] = {}
        async for page in pages(self._link, key, glob_escaped(self._field("")) + "*"):
            stored.update((field[begin:].decode("utf-8", "replace"), value) for field, value in page)
        await execute(self._link, "EXPIRE", key, KEPT_S)
        there = self._present.get(session_id, {})
        wrong = {subject for subject, each in there.items() if stored.get(subject) != value_of(each)}
        wrong |= stored.keys() - there.keys()
        if not wrong and is_listed != bool(there):
            wrong = {next(iter(there), "")}  # whichever: that puts the list right
        if wrong:
            self._unsaid.setdefault(session_id, set()).update(wrong)

    async def _marks(self) -> dict[str, bytes]:
        flat = await execute(self._link, "HGETALL", self._keys.presence_processes)
        return {
            name.decode("utf-8", "replace"): mark for name, mark in zip(flat[::2], flat[1::2], strict=True)
        }

    async def present(self, session_id: str) -> dict[str, dict[str, Attendance]]:
        said, partial = await self._read(session_id)
        for _ in range(READ_AGAIN_TIMES):
            if not partial:
                break
            # They say all again just now, which takes some ms.
            await asyncio.sleep(READ_AGAIN_AFTER_S)
            said, partial = await self._read(session_id)
        for process in partial:
            del said[process]
        return said

    async def _read(self, session_id: str) -> tuple[dict[str, dict[str, Attendance]], list[str]]:
        """What the other processes say, as stored; and those of which not all may be."""
        marks = await self._marks()
        said: dict[str, dict[str, Attendance]] = {each: {} for each in marks if each != self._process}
        async for page in pages(self._link, self._keys.presence(session_id)):
            for field, value in page:
                process, _, subject = field.decode("utf-8", "replace").partition(" ")
                attendance = attendance_of(value)
                if process in said and attendance is not None:
                    said[process][subject] = attendance
        # Where a mark has changed meanwhile, something may have been missing.
        then = await self._marks()
        partial = [
            each for each in said if marks[each] != then.get(each) or marks[each].startswith(UNSETTLED)
        ]
        return said, partial


def refusal(reply: Any) -> str:
    """Why Redis has not done it; empty where it has."""
    return str(reply).removeprefix(REFUSED) if isinstance(reply, hiredis.ReplyError) else ""


def value_of(attendance: Attendance) -> bytes:
    return b"%d %d" % (attendance.connections, attendance.since_ms)


def attendance_of(value: bytes) -> Attendance | None:
    """None where it is none of ours."""
    connections, _, since_ms = value.partition(b" ")
    if not (connections.isdigit() and since_ms.isdigit()):
        return None
    return Attendance(int(connections), int(since_ms))


def first_of(subjects: set[str]) -> list[str]:
    """As many of them as are told at once: one at least."""
    first: list[str] = []
    size = 0
    for subject in islice(subjects, SUBJECTS_AT_ONCE):
        size += len(subject.encode())
        if first and size > BYTES_AT_ONCE:
            break
        first.append(subject)
    return first


def batches(names: tuple[str, ...], size: int) -> Iterator[tuple[str, ...]]:
    return (names[start : start + size] for start in range(0, len(names), size))
