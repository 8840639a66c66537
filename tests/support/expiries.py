"""Many clocks that run out while a process is killed, and how late each expiry is told."""

import asyncio
import random
import threading
import time
from typing import Any

import ujson

from lockstep.rules.state_json import from_iso
from tests.support.load import chess, data, rest
from tests.support.processes import ServerProcess
from tests.support.redis_server import RedisServer

WINDOW_S = 10.0


class Ear:
    """What the processes publish, heard on Redis itself."""

    def __init__(self, redis: RedisServer) -> None:
        self.lateness_ms: list[int] = []
        self._pubsub = redis.client.pubsub()
        self._pubsub.subscribe("session-updates")
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._is_over = False
        self._thread.start()

    def _listen(self) -> None:
        while not self._is_over:
            heard = self._pubsub.get_message(timeout=0.1)
            if heard is None or heard["type"] != "message":
                continue
            message = ujson.loads(heard["data"])
            state = message.get("state")
            if state and any(seat["has_expired"] for seat in state["participants"]):
                at_ms = from_iso(state["cycle_started_at"])
                if from_iso(state["updated_at"]) == at_ms and state["deadline_ms"] is None:
                    self.lateness_ms.append(message["timestamp"] - at_ms)

    def close(self) -> None:
        self._is_over = True
        self._thread.join()
        self._pubsub.close()


async def p99_lateness_ms(redis: RedisServer, sessions: int) -> int:
    """Of so many expiries within WINDOW_S: each must be told once, and none early."""
    chance = random.Random(sessions)
    window_s = min(WINDOW_S, sessions / 50)
    servers = [ServerProcess(f"--broker={redis.url}", "--log-level=warning") for _ in range(3)]
    ear = Ear(redis)
    try:
        # So that the first falls due when the last has been started.
        begin_s = time.monotonic() + 2 + sessions / 120
        gate = asyncio.Semaphore(60)
        deadlines_ms: dict[str, int] = {}

        async def set_going(number: int) -> None:
            async with gate:
                server = servers[number % 3]
                due_s = begin_s + window_s * number / sessions
                budget_ms = max(1000, int((due_s - time.monotonic()) * 1000))
                spec = chess(budget_ms=budget_ms)
                data(await rest(f"{server.url}/v1/sessions", spec, timeout_s=60))
                started = data(
                    await rest(f"{server.url}/v1/sessions/{spec['session_id']}/start", timeout_s=60)
                )
                deadlines_ms[spec["session_id"]] = started["deadline_ms"]

        await asyncio.gather(*(set_going(number) for number in range(sessions)))
        last_ms = max(deadlines_ms.values())

        def broker_ms() -> int:
            seconds, microseconds = redis.client.time()
            return int(seconds) * 1000 + int(microseconds) // 1000

        async def race(session_id: str, deadline_ms: int) -> None:
            """A switch within 30 ms of the deadline, at a process that lives on."""
            await asyncio.sleep(max(0, deadline_ms - broker_ms() + chance.uniform(-30, 30)) / 1000)
            answer = await rest(f"{servers[1].url}/v1/sessions/{session_id}/switch", timeout_s=60)
            assert answer.code == 200

        async def kill_one() -> None:
            await asyncio.sleep(max(0, last_ms - 1000 * window_s / 2 - broker_ms()) / 1000)
            servers[0].kill()

        raced = chance.sample(sorted(deadlines_ms), sessions // 10)
        await asyncio.gather(kill_one(), *(race(each, deadlines_ms[each]) for each in raced))
        while broker_ms() < last_ms + 1500:
            await asyncio.sleep(0.1)

        async def check(session_id: str) -> None:
            async with gate:
                answer = await rest(
                    f"{servers[2].url}/v1/sessions/{session_id}/events", method="GET", timeout_s=60
                )
            events: list[dict[str, Any]] = data(answer)["events"]
            deadline_ms = deadlines_ms[session_id]
            assert [event["version"] for event in events] == list(range(1, len(events) + 1))
            flagged = [
                event
                for event in events
                if event["type"] == "flagged" and from_iso(event["at"]) == deadline_ms
            ]
            switched = [event for event in events if event["type"] == "switched"]
            escaped = bool(switched) and (from_iso(switched[0]["at"]) or 0) < deadline_ms
            assert len(flagged) == (0 if escaped else 1), (session_id, events)

        await asyncio.gather(*(check(session_id) for session_id in deadlines_ms))
        lateness = sorted(ear.lateness_ms)
        assert lateness[0] >= 0, "an expiry was told early"
        p99 = lateness[len(lateness) * 99 // 100]
        print(f"lateness of {len(lateness)} expiries: p50 {lateness[len(lateness) // 2]} ms, p99 {p99} ms")
        return p99
    finally:
        ear.close()
        for server in servers[1:]:
            server.stop()
