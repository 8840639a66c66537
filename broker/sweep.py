"""What a process that has died, or was stopped, said of its clients is withdrawn by the others."""

import asyncio
import logging
from collections.abc import Iterable

from broker.calls import checked, execute
from broker.counters import LIFE_SIGN_S
from broker.keys import Channels, Keys, glob_escaped
from broker.link import CommandLink
from broker.resp import Argument, LinkDown
from broker.scan import pages
from broker.script import Script
from lockstep.errors import BrokerUnavailable
from lockstep.tasks import Tasks
from lockstep.wire import attendances

log = logging.getLogger(__name__)

# A sign of life is renewed every second: with less left than this its process has not done so for long.
SWEPT_BELOW_MS = 2000
# Sessions that are looked at in one round trip, and fields that are removed in one step of Redis.
SESSIONS_AT_ONCE = 100
FIELDS_AT_ONCE = 500


class ProcessLives(Exception):
    """It is not dead after all, and says again itself what was withdrawn for it."""


class Sweep:
    """Withdraws for the dead; several processes may do it at once, and each session is told once."""

    def __init__(self, link: CommandLink, keys: Keys, channels: Channels) -> None:
        self._link = link
        self._keys = keys
        self._channels = channels
        self._script = Script(
            "sweep",
            LIFE_SIGN_MS=LIFE_SIGN_S * 1000,
            SWEPT_BELOW_MS=SWEPT_BELOW_MS,
            PUBLISH=channels.publish,
        )
        self._under_way: set[str] = set()
        self._tasks = Tasks()

    async def close(self) -> None:
        await self._tasks.close()

    async def look(self, processes: Iterable[str]) -> None:
        """Begin to withdraw what those of them have said that are dead. Raises BrokerUnavailable."""
        names = [name for name in processes if name not in self._under_way]
        lefts = await asyncio.gather(
            *(execute(self._link, "PTTL", self._keys.life_sign(name)) for name in names)
        )
        for name, left_ms in zip(names, lefts, strict=True):
            # One with too much left is from before TIME was set back: it is cut.
            if not SWEPT_BELOW_MS <= left_ms <= LIFE_SIGN_S * 1000:
                self._under_way.add(name)
                self._tasks.spawn(self._sweep(name))

    async def _sweep(self, process: str) -> None:
        try:
            sessions = 0
            while session_ids := await self._some_sessions(process):
                await asyncio.gather(*(self._withdraw(process, session_id) for session_id in session_ids))
                sessions += len(session_ids)
            await self._forget(process)
            log.info(
                "what process %s said of who is present was withdrawn, in %d sessions", process, sessions
            )
        except ProcessLives:
            log.info("process %s lives: what it says of who is present stays", process)
        except (LinkDown, BrokerUnavailable) as error:
            log.warning("withdrawing what process %s said is put off: %s", process, error)
        finally:
            self._under_way.discard(process)

    async def _some_sessions(self, process: str) -> list[str]:
        """Not the same ones as others get who do the same work."""
        key = self._keys.presence_of(process)
        session_ids = await execute(self._link, "HRANDFIELD", key, SESSIONS_AT_ONCE)
        return [session_id.decode("utf-8", "replace") for session_id in session_ids]

    async def _withdraw(self, process: str, session_id: str) -> None:
        channel = self._channels.update(session_id)
        message = attendances.message_of(session_id, process, None)
        key = self._keys.presence(session_id)
        fields: list[bytes] = []
        async for page in pages(self._link, key, f"{glob_escaped(process)} *"):
            fields += [field for field, _ in page]
            while len(fields) > FIELDS_AT_ONCE:
                part, fields = fields[:FIELDS_AT_ONCE], fields[FIELDS_AT_ONCE:]
                await self._call([key], process, session_id, 0, channel, message, *part)
        await self._call([key], process, session_id, 1, channel, message, *fields)

    async def _forget(self, process: str) -> None:
        await self._call([], process, "", 1, "", b"")

    async def _call(self, of_session: list[str], process: str, *arguments: Argument) -> None:
        its_keys = [self._keys.life_sign(process), self._keys.presence_of(process)]
        keys = [*its_keys, self._keys.presence_processes, *of_session]
        if checked(await self._script(self._link, keys, process, *arguments)) < 0:
            raise ProcessLives
