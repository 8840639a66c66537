"""Presence at one session, as this process knows it, and what its clients have been told of it."""

from asyncio import Task, TimerHandle
from collections.abc import Mapping

from msgspec import UNSET, Raw, Struct, UnsetType

from lockstep.contract import Attendance
from lockstep.live.attendees import Attendees, Report
from lockstep.live.peers import Peer
from lockstep.live.roster import Attendances, Roster
from lockstep.rules.state_json import dumps
from lockstep.wire.protocol_v2 import Left, Presence

LAPSE_S = 15.0
"""What a process said that the store does not know any more is believed for so long."""
_OWN = ""


class Told(Struct, frozen=True):
    """What a client knows: all that is in its list, if it has one, up to flip number `flip_count`."""

    flip_count: int
    is_listed: bool
    anonymous: int
    total: int


_NOTHING = Told(0, False, 0, 0)


class Telling(Struct, frozen=True):
    """PRESENCE for all followers, and those of them who are told something else instead; None: nothing."""

    message: bytes | None
    others: dict[Peer, bytes | None]


class RoomPresence:
    """Takes what clients and processes do, and gives what is to be said; it neither waits nor knows the time.

    `now_s` is of a clock that never steps. What other processes say counts for clients once it has been
    read (`is_known`).
    """

    __slots__ = (
        "_attendees",
        "_doubted_s",
        "_heard",
        "_newcomers",
        "_roster",
        "_told",
        "due_s",
        "epoch",
        "is_known",
        "must_read",
        "reading",
        "session_id",
        "timer",
        "told_at_s",
    )

    def __init__(self, session_id: str, epoch: str) -> None:
        self.session_id = session_id
        self.epoch = epoch
        self.is_known = False
        # Kept here for the tracker: its timer and when that is due, its read that is under way, whether
        # something may have been missed since, and when followers were told last.
        self.timer: TimerHandle | None = None
        self.due_s = 0.0
        self.reading: Task[None] | None = None
        self.must_read = False
        self.told_at_s = float("-inf")
        self._attendees = Attendees()
        self._roster = Roster()
        # Since when the store has not known these processes.
        self._doubted_s: dict[str, float] = {}
        # What has been heard since a read began.
        self._heard: list[tuple[str, Attendances | None]] | None = None
        # What followers know, and those who know something else, as they came later.
        self._told = _NOTHING
        self._newcomers: dict[Peer, Told] = {}

    # --- this process's clients --------------------------------------------------------------------

    @property
    def own(self) -> Mapping[str, Attendance]:
        """What this process says of its clients."""
        return self._attendees.attendances

    @property
    def next_report_s(self) -> float | None:
        """When a departure is to be reported to other processes."""
        return self._attendees.next_report_s

    def arrive(self, subject: str, now_ms: int, now_s: float) -> list[Report]:
        """A client has come, at `now_ms` of the broker's clock; what is to be said to other processes."""
        since_ms = self._roster.since_ms(subject)
        earliest_ms = now_ms if since_ms is None else min(since_ms, now_ms)
        return self._said([(subject, self._attendees.arrive(subject, earliest_ms))], now_s)

    def depart(self, subject: str, now_s: float) -> list[Report]:
        """A client has left; what is to be said to other processes."""
        return self._said([(subject, self._attendees.depart(subject, now_s))], now_s)

    def report(self, now_s: float) -> list[Report]:
        """What is to be said to other processes by now, of clients that have left before."""
        return self._said(self._attendees.report(now_s), now_s)

    def _said(self, reports: list[Report], now_s: float) -> list[Report]:
        self._roster.put(_OWN, dict(reports))
        self._roster.settle(now_s)
        return reports

    # --- other processes ---------------------------------------------------------------------------

    @property
    def next_doubt_s(self) -> float | None:
        """When the store is to be asked again for processes that it did not know."""
        return min(self._doubted_s.values()) + LAPSE_S if self._doubted_s else None

    def hear(self, process: str, attendances: Attendances | None, now_s: float) -> list[Report]:
        """What another process says (None: it is no more); what is to be said in turn."""
        if self._heard is not None:
            self._heard.append((process, attendances))
        self._doubted_s.pop(process, None)
        if attendances is not None:
            self._roster.put(process, attendances)
            return self._said(self._attendees.antedate(attendances), now_s)
        if process in self._roster.processes:
            self._roster.forget(process, now_s)
        return []

    def begin_read(self) -> None:
        """What is heard from now on may be newer than what the read finds."""
        self._heard = []

    def fail_read(self) -> None:
        self._heard = None

    def end_read(self, found: Mapping[str, Mapping[str, Attendance]], now_s: float) -> list[Report]:
        """What all other processes say, by process; what is to be said in turn.

        One that is not in it may only be unknown to a store that has lost something.
        """
        heard, self._heard = self._heard, None
        reports: list[Report] = []
        for process, attendances in found.items():
            self._doubted_s.pop(process, None)
            self._roster.replace(process, attendances)
            reports += self._attendees.antedate(attendances)
        for process in self._roster.processes:
            if process == _OWN or process in found:
                continue
            if now_s - self._doubted_s.setdefault(process, now_s) >= LAPSE_S:
                del self._doubted_s[process]
                self._roster.forget(process, now_s)
        self._said(reports, now_s)
        self.is_known = True
        for process, said in heard or ():
            reports += self.hear(process, said, now_s)
        return reports

    def trust(self) -> None:
        """The store may have lost something, and gets the time again to be told it."""
        self._doubted_s.clear()

    # --- what clients are told -----------------------------------------------------------------------

    @property
    def next_fall_s(self) -> float | None:
        """When the number of the anonymous falls."""
        return self._roster.next_fall_s

    def settle(self, now_s: float) -> None:
        """Let the number of the anonymous fall as far as it is to fall by now."""
        self._roster.settle(now_s)

    @property
    def has_news(self) -> bool:
        """True if there may be something to tell."""
        told, roster = self._told, self._roster
        return bool(roster.flips or self._newcomers or told is _NOTHING or told.anonymous != roster.anonymous)

    def listing(self, *, is_whole: bool = False) -> bytes:
        """The list, in JSON: as a subscriber gets it, or whole, however many are present."""
        return self._roster.listing(is_whole=is_whole)

    def whole_listing(self, found: Mapping[str, Mapping[str, Attendance]]) -> bytes:
        """The same where other processes say this, as was read for one who asks."""
        roster = Roster()
        for process, attendances in {**found, _OWN: self.own}.items():
            roster.replace(process, attendances)
        roster.settle(0)
        return roster.listing(is_whole=True)

    def greet(self, peer: Peer) -> Raw:
        """The list for a peer, which is told from now on what comes on top of that."""
        self._newcomers[peer] = self._now()
        return Raw(self._roster.listing())

    def catch_up(self, peer: Peer, timestamp_ms: int) -> list[bytes]:
        """The same as PRESENCE, for a peer that has missed some: that it has no list, then everybody."""
        self._newcomers[peer] = now = self._now()
        messages = [self._message(timestamp_ms)]
        if now.is_listed:
            messages.append(self._message(timestamp_ms, self._roster.entries(), []))
        return messages

    def part(self, peer: Peer) -> None:
        """The peer is told nothing any more."""
        self._newcomers.pop(peer, None)

    def skip_telling(self) -> None:
        """There is nobody to tell, or nothing that can be told."""
        self._told = _NOTHING
        self._roster.flips.clear()
        self._newcomers.clear()

    def tell(self, timestamp_ms: int) -> Telling:
        """What has changed since each of the followers was told; they know it now."""
        news = self._news_for({self._told, *self._newcomers.values()}, timestamp_ms)
        message = news[self._told]
        others = {peer: news[told] for peer, told in self._newcomers.items() if news[told] != message}
        self._newcomers = {}
        self._roster.flips.clear()
        self._told = self._now()
        return Telling(message, others)

    def _news_for(self, known: set[Told], timestamp_ms: int) -> dict[Told, bytes | None]:
        """PRESENCE for those who know so much; None where they know all."""
        roster = self._roster
        news: dict[Told, bytes | None] = {}
        if not roster.is_listed:
            message = self._message(timestamp_ms)
            for told in known:
                knows_all = (told.is_listed, told.anonymous, told.total) == (
                    False,
                    roster.anonymous,
                    roster.total,
                )
                news[told] = None if knows_all else message
            return news
        everybody = self._message(timestamp_ms, roster.entries(), [])
        # From the last flip back: who has flipped an odd number of times is another than before. Those lists
        # are short from which a short one has become.
        flipped: set[str] = set()
        at = len(roster.flips)
        changed = None
        for told in sorted(known, key=lambda each: each.flip_count, reverse=True):
            while at > told.flip_count:
                at -= 1
                flipped ^= {roster.flips[at]}
                changed = None
            if not told.is_listed:
                news[told] = everybody
            elif not flipped and told.anonymous == roster.anonymous:
                news[told] = None
            else:
                if changed is None:
                    left = [Left(subject=each) for each in sorted(flipped) if each not in roster]
                    changed = self._message(timestamp_ms, roster.entries(flipped), left)
                news[told] = changed
        return news

    def _now(self) -> Told:
        roster = self._roster
        return Told(len(roster.flips), roster.is_listed, roster.anonymous, roster.total)

    def _message(
        self, timestamp_ms: int, joined: Raw | UnsetType = UNSET, left: list[Left] | UnsetType = UNSET
    ) -> bytes:
        return dumps(
            Presence(
                session_id=self.session_id,
                timestamp=timestamp_ms,
                joined=joined,
                left=left,
                anonymous=self._roster.anonymous,
                total=self._roster.total,
            )
        )
