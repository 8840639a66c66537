"""Limits: exact, shared by all processes, and given back."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from tornado.netutil import bind_sockets

from broker.link import BACK_SOON_S
from lockstep import sessions
from lockstep.addresses import Addresses
from lockstep.config import Settings
from lockstep.contract import Charge
from lockstep.limits import MAX_REMEMBERED, FixedWindows, Rate
from server import Server
from tests.support.load import chess, eventually
from tests.support.metrics import figures
from tests.support.processes import Answer, ServerProcess, read_answer, request, running
from tests.support.redis_server import Proxy, RedisServer
from tests.support.ws_client import Closed, WsClient


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of switches that come at once none is given up because the machine is slow."""
    monkeypatch.setattr(sessions, "GIVE_UP_S", 60.0)


# --- arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "x", "-1/60", "100", "100/0", "100/-1", "1/2/3", "1.5/60"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        Rate.parse(text)


def test_a_window_begins_with_its_first_count_and_ends_for_good() -> None:
    windows, charge = FixedWindows(), Charge("x", 2, 1000)
    assert windows.spend(charge, 50.0) == (1, 1000)
    assert windows.spend(charge, 50.5) == (2, 500)
    assert windows.spend(charge, 50.999)[0] == 3
    assert windows.spend(charge, 51.0) == (1, 1000)
    assert windows.spend(Charge("y", 2, 500), 51.0) == (1, 500)


def test_windows_of_many_callers_take_bounded_memory() -> None:
    windows = FixedWindows()
    for number in range(MAX_REMEMBERED + 100):
        windows.spend(Charge(str(number), 1, 60_000), 0.0)
    assert len(windows._windows) <= MAX_REMEMBERED


class Instant(float):
    """Counts how often a window is held against it."""

    looks = 0

    def __lt__(self, other: float) -> bool:
        self.looks += 1
        return super().__lt__(other)

    def __ge__(self, other: float) -> bool:
        self.looks += 1
        return super().__ge__(other)


def test_a_new_caller_among_very_many_costs_hardly_more_than_among_few() -> None:
    windows, now_s = FixedWindows(), Instant(0.0)
    looks = []
    for number in range(2 * MAX_REMEMBERED):
        before = now_s.looks
        windows.spend(Charge(str(number), 1, 60_000), now_s)
        looks.append(now_s.looks - before)
    few, very_many = sum(looks[:MAX_REMEMBERED]), sum(looks[MAX_REMEMBERED:])
    assert max(looks) >= MAX_REMEMBERED, "not all are gone through, or the looks are not counted"
    assert very_many < 20 * few


def test_windows_that_are_over_make_room_first_and_then_the_oldest() -> None:
    windows = FixedWindows()
    for number in range(MAX_REMEMBERED):
        windows.spend(Charge(str(number), 1, 60_000 if number % 2 else 1000), 0.0)
    windows.spend(Charge("new", 1, 60_000), 2.0)
    assert [windows.look(Charge(str(number), 1, 1), 2.0)[0] for number in (1, 3)] == [1, 1]
    for number in range(MAX_REMEMBERED // 2):
        windows.spend(Charge(f"newer {number}", 1, 60_000), 2.0)
    assert windows.look(Charge("1", 1, 1), 2.0)[0] == 0
    assert windows.look(Charge(str(MAX_REMEMBERED - 1), 1, 1), 2.0)[0] == 1


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ([], "10.0.0.1", "1.2.3.4", "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", None, "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", "1.2.3.4", "1.2.3.4"),
        (["10.0.0.0/8"], "1.1.1.1", "1.2.3.4", "1.1.1.1"),
        # What the client says himself stands to the left of what the proxy has seen.
        (["10.0.0.0/8"], "10.0.0.1", "9.9.9.9, 1.2.3.4", "1.2.3.4"),
        (["10.0.0.0/8"], "10.0.0.1", "9.9.9.9, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
        (["127.0.0.1", "::1"], "::1", "2001:db8::1", "2001:db8::/64"),
        ([], "2001:db8::1", None, "2001:db8::/64"),
        # What a proxy cannot name is asked by the proxy itself.
        (["10.0.0.0/8"], "10.0.0.1", "unknown", "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", "1.2.3.4, unknown", "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", "1.2.3.4, unknown, 10.0.0.2", "10.0.0.2"),
        (["10.0.0.0/8"], "10.0.0.1", "", "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", "1.2.3.4" * 1000, "10.0.0.1"),
        # A Unix socket.
        (["10.0.0.0/8"], "", "1.2.3.4", "1.2.3.4"),
        ([], "", "1.2.3.4", "1.2.3.4"),
        ([], "", "9.9.9.9, 1.2.3.4", "1.2.3.4"),
        (["10.0.0.0/8"], "", "9.9.9.9, 1.2.3.4, 10.1.2.3", "1.2.3.4"),
        ([], "", "unknown", "unix"),
        ([], "", None, "unix"),
        # Proxies, however they are written, and by whichever family they come.
        (["10.0.0.1"], "::ffff:10.0.0.1", "1.2.3.4", "1.2.3.4"),
        (["::ffff:10.0.0.0/104"], "10.0.0.1", "1.2.3.4", "1.2.3.4"),
        (["2001:DB8:0:0::1"], "2001:db8::1", "1.2.3.4, [2001:db8:0::1]:80", "1.2.3.4"),
        (["2001:db8::/32"], "2001:db8::1", "9.9.9.9, 1.2.3.4:5, 2001:DB8::2", "1.2.3.4"),
    ],
)
def test_forwarded_for_is_believed_from_trusted_proxies_only(
    trusted: list[str], peer: str, forwarded: str | None, client: str
) -> None:
    assert Addresses(trusted).client_of(peer, forwarded) == client


SPELLINGS = {
    "1.2.3.4": [
        "1.2.3.4",
        " 1.2.3.4 ",
        "1.2.3.4:5678",
        "::ffff:1.2.3.4",
        "::FFFF:102:304",
        "[::ffff:1.2.3.4]:80",
    ],
    "2001:db8:0:1::/64": [
        "2001:db8:0:1::1",
        "2001:DB8:0:1::1",
        "2001:0db8:0000:0001:0000:0000:0000:0001",
        "[2001:db8:0:1::1]",
        "[2001:db8:0:1::1]:443",
        '"[2001:db8:0:1::1]:443"',
        "2001:db8:0:1:ffff:ffff:ffff:ffff",
    ],
    "fe80::/64": ["fe80::1", "fe80::1%eth0", "[fe80::2%2]:443"],
}


@pytest.mark.parametrize(("client", "text"), [(c, t) for c, texts in SPELLINGS.items() for t in texts])
def test_an_address_is_one_client_however_it_is_written(client: str, text: str) -> None:
    addresses = Addresses(["10.0.0.0/8"])
    assert addresses.client_of("10.0.0.1", text) == client
    assert addresses.client_of("10.0.0.1", f"9.9.9.9,{text}, 10.0.0.2:80") == client


@pytest.mark.parametrize(
    "text",
    ["1.2.3", "1.2.3.4.5", "01.2.3.4", "[1.2.3.4", "2001:db8::1::2", "::1:80:", "[]", "x:80", "1.2.3.4:x"],
)
def test_what_only_resembles_an_address_is_none(text: str) -> None:
    assert Addresses(["10.0.0.0/8"]).client_of("10.0.0.1", text) == "10.0.0.1"


# --- requests ------------------------------------------------------------------------------------


@asynccontextmanager
async def limited(count: int = 1, **settings: object) -> AsyncIterator[list[str]]:
    """Servers in this process with limits on, as they are where others than this machine can reach them."""
    async with AsyncExitStack() as stack:
        urls = []
        for _ in range(count):
            server = Server(Settings(port=0, address="0.0.0.0", log_level="error", **settings))  # type: ignore[arg-type]
            sockets = bind_sockets(0, "127.0.0.1")
            await server.start(sockets)
            stack.push_async_callback(server.stop)
            urls.append(f"http://127.0.0.1:{sockets[0].getsockname()[1]}")
        yield urls


async def running_session(url: str) -> str:
    created = await request(f"{url}/v1/sessions", "POST", chess())
    session_id: str = created.data["session_id"]
    await request(f"{url}/v1/sessions/{session_id}/start", "POST")
    return session_id


async def switch(url: str, session_id: str) -> Answer:
    return await request(f"{url}/v1/sessions/{session_id}/switch", "POST")


@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_of_switches_exactly_as_many_as_allowed_are_made(broker: str) -> None:
    redis = RedisServer() if broker == "redis" else None
    try:
        url = redis.url if redis else "memory://"
        async with limited(
            2 if redis else 1, broker=url, rate_limit_switch="10/60", rate_limit_general="0"
        ) as urls:
            session_id, other_id = await running_session(urls[0]), await running_session(urls[0])
            answers = await asyncio.gather(*(switch(urls[n % len(urls)], session_id) for n in range(30)))
            assert Counter(answer.status for answer in answers) == {200: 10, 429: 20}
            allowed = [answer for answer in answers if answer.status == 200]
            left = sorted(int(answer.headers["ratelimit-remaining"]) for answer in allowed)
            assert left == list(range(10))
            refused = next(answer for answer in answers if answer.status == 429)
            error = refused.body["error"]
            assert error["code"] == "RATE_LIMIT_EXCEEDED"
            assert error["message"] == "Too many cycle switches for this session, please slow down"
            assert error["retry_after_seconds"] == int(refused.headers["retry-after"])
            assert 1 <= error["retry_after_seconds"] <= 60
            assert refused.headers["ratelimit-remaining"] == "0"
            assert refused.headers["ratelimit-limit"] == "10"
            read = await request(f"{urls[0]}/v1/sessions/{session_id}", "GET")
            assert read.data["version"] == 12
            assert (await switch(urls[-1], other_id)).status == 200
    finally:
        if redis:
            redis.close()


async def test_of_requests_exactly_as_many_as_allowed_are_answered() -> None:
    async with limited(rate_limit_general="5/60") as (url,):
        answers = [
            await request(f"{url}{path}", "GET") for path in ["/v1/time", "/v1/sessions", "/v1/nowhere"] * 3
        ]
        assert [answer.status for answer in answers] == [200, 200, 404, 200, 200, 429, 429, 429, 429]
        assert answers[-1].body["error"]["message"] == "Too many requests, please try again later"
        assert [answer.headers["ratelimit-remaining"] for answer in answers[:5]] == list("43210")
        for path in ("/health", "/ready", "/metrics"):
            assert (await request(url + path, "GET")).status == 200, "never limited"


async def test_a_body_that_is_too_large_is_a_request_like_any_other() -> None:
    async with limited(rate_limit_general="2/60") as (url,):
        address = urlsplit(url).hostname, urlsplit(url).port
        answers = []
        for n in range(6):
            reader, writer = await asyncio.open_connection(*address)
            method, size = ("POST", 99_999_999) if n % 2 else ("GET", 5000)
            head = f"{method} /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
            writer.write(head.encode())
            answers.append(await asyncio.wait_for(read_answer(reader), 10))
            writer.transport.abort()
        assert [answer.status for answer in answers] == [413, 413, 429, 429, 429, 429]
        assert [answer.headers["ratelimit-remaining"] for answer in answers] == list("100000")
        assert {answer.headers["connection"] for answer in answers} == {"close"}


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/sessions/5e000000-0000-4000-8000-000000000000/switch"])
async def test_preflights_cost_nobody_anything(path: str) -> None:
    """They cannot say whose they are, so those of a hall would all be one caller's."""
    async with limited(rate_limit_general="2/60") as (url,):
        answers = [await request(url + path, "OPTIONS") for _ in range(5)]
        assert {answer.status for answer in answers} == {204}
        assert [(await request(f"{url}/v1/time", "GET")).status for _ in range(3)] == [200, 200, 429]


async def test_callers_behind_a_trusted_proxy_are_told_apart() -> None:
    async with limited(rate_limit_general="1/60", trusted_proxies="127.0.0.1") as (url,):
        for client in ("1.2.3.4", "1.2.3.5"):
            statuses = [
                (await request(f"{url}/v1/time", "GET", None, {"X-Forwarded-For": client})).status
                for _ in range(2)
            ]
            assert statuses == [200, 429]


async def test_while_redis_is_away_each_process_counts_by_itself() -> None:
    redis = RedisServer()
    try:
        async with limited(broker=redis.url, rate_limit_general="3/60") as (url,):
            redis.kill()
            statuses = [(await request(f"{url}/v1/time", "GET")).status for _ in range(5)]
            assert statuses == [200, 200, 200, 429, 429]
    finally:
        redis.close()


async def test_nothing_is_limited_on_loopback_without_keys() -> None:
    with running(ServerProcess("--rate-limit-general=1/60")) as server:
        answers = [await request(f"{server.url}/v1/time", "GET") for _ in range(3)]
        assert [answer.status for answer in answers] == [200] * 3
        assert "ratelimit-limit" not in answers[0].headers


# --- connections ---------------------------------------------------------------------------------


async def knock(server: ServerProcess, session_id: str) -> tuple[WsClient, object]:
    """A client, and what it hears first."""
    client = await WsClient.connect(f"{server.ws_url}/ws?sessionId={session_id}")
    return client, await client.recv()


@pytest.mark.long
async def test_a_sessions_limit_holds_over_three_processes_and_a_dead_one_holds_nothing() -> None:
    redis = RedisServer()
    servers = [ServerProcess(f"--broker={redis.url}", "--max-connections-per-session=100") for _ in range(3)]
    clients: list[WsClient] = []
    try:
        session_id = str(uuid4())
        knocks = await asyncio.gather(*(knock(servers[n % 3], session_id) for n in range(300)))
        clients = [client for client, _ in knocks]
        full = Closed(4002, "Too many clients of this session")
        refused = sum(first == full for _, first in knocks)
        assert refused == 200, [
            line for server in servers for line in server.log() if line["level"] != "info"
        ]
        inside = [client for client, first in knocks if first != full]
        assert len(inside) == 100
        # One that leaves makes room for one.
        await inside[0].close()

        async def has_room() -> str:
            client, first = await knock(servers[1], session_id)
            clients.append(client)
            return "" if first != full else "still full"

        await eventually(has_room, 10, "who left is still counted")
        assert await has_room() == "still full"
        # Those of a process that was killed are no longer counted some time later.
        servers[0].kill()
        await eventually(has_room, 40, "the dead are still counted")
    finally:
        for client in clients:
            client.abort()
        for server in servers:
            server.stop()
        redis.close()


async def test_who_leaves_while_redis_is_away_is_not_counted_when_it_is_back() -> None:
    redis = RedisServer()
    limit = "--max-connections-per-session=1"
    async with Proxy(redis.port) as proxy:
        servers = [
            await asyncio.to_thread(ServerProcess, f"--broker={url}", limit) for url in (proxy.url, redis.url)
        ]
        try:
            session_id = str(uuid4())
            client, _ = await knock(servers[0], session_id)
            proxy.refuses = True
            proxy.cut()
            await client.close()
            await eventually(partial(gone, servers[0]), 5, "the server has not noticed")
            await asyncio.sleep(2 * BACK_SOON_S)  # no call waits so long for a connection that was lost
            proxy.refuses = False

            async def has_room() -> str:
                other, first = await knock(servers[1], session_id)
                other.abort()
                return str(first) if isinstance(first, Closed) else ""

            await eventually(has_room, 10, "who left is still counted")
        finally:
            for server in servers:
                await asyncio.to_thread(server.stop)
            redis.close()


async def gone(server: ServerProcess) -> str:
    connections = (await figures(server.url))["lockstep_connections"]
    return f"{connections} are left" if connections else ""


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("--max-connections=2", 4003),
        ("--max-connections-per-ip=2", 4004),
        ("--max-connections-per-session=2", 4002),
    ],
)
async def test_the_one_too_many_is_told_which_limit(setting: str, code: int) -> None:
    with running(ServerProcess(setting)) as server:
        session_id = str(uuid4())
        knocks = [await knock(server, session_id) for _ in range(3)]
        assert [first["type"] for _, first in knocks[:2]] == ["CONNECTED"] * 2  # type: ignore[index]
        last = knocks[2][1]
        assert isinstance(last, Closed)
        assert last.code == code
        for client, _ in knocks:
            client.abort()

        async def has_room() -> str:
            client, first = await knock(server, session_id)
            client.abort()
            return f"closed {first.code}" if isinstance(first, Closed) else ""

        await eventually(has_room, 10, "their places are not given back")


async def test_more_new_clients_a_second_than_allowed_are_sent_away() -> None:
    with running(ServerProcess("--connection-rate=5")) as server:
        began_s, let_in, refused = time.monotonic(), 0, 0
        while not refused:  # a slow machine may need longer for them than they are too many for
            knocks = await asyncio.gather(*(knock(server, str(uuid4())) for _ in range(30)))
            refused = sum(first == Closed(4005, "Too many new clients") for _, first in knocks)
            let_in += len(knocks) - refused
            for client, _ in knocks:
                client.abort()
        # Five in each second that has begun.
        assert 5 <= let_in <= 5 * (time.monotonic() - began_s + 2)


async def test_who_talks_more_than_allowed_is_sent_away_and_others_are_not() -> None:
    with running(ServerProcess("--message-rate=50")) as server:
        (talker, _), (quiet, _) = await knock(server, str(uuid4())), await knock(server, str(uuid4()))
        pings = talker.frame_of({"type": "PING"}) * 300

        async def talk() -> None:
            with suppress(ConnectionError):
                while True:
                    await talker.send_raw(pings)
                    await asyncio.sleep(0.05)

        began_s = time.monotonic()
        talking = asyncio.create_task(talk())
        heard = [await talker.recv()]
        while not isinstance(heard[-1], Closed):
            heard.append(await talker.recv())
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        assert heard[-1] == Closed(4006, "Too many messages")
        # Fifty in each second that has begun.
        assert 50 <= len(heard) - 1 <= 50 * (time.monotonic() - began_s + 2)
        await quiet.fence()
        talker.abort()
        quiet.abort()


@pytest.mark.parametrize("client", SPELLINGS)
async def test_one_client_has_one_share_however_its_address_is_written(client: str) -> None:
    texts = SPELLINGS[client]
    async with limited(rate_limit_general=f"{len(texts)}/60", trusted_proxies="127.0.0.1") as (url,):
        for text in texts:
            answer = await request(f"{url}/v1/time", "GET", None, {"X-Forwarded-For": text})
            assert answer.status == 200, text
        for text in texts:
            answer = await request(f"{url}/v1/time", "GET", None, {"X-Forwarded-For": text})
            assert answer.status == 429, text
        answer = await request(f"{url}/v1/time", "GET", None, {"X-Forwarded-For": "2001:db8:ffff::1"})
        assert answer.status == 200
    async with limited(max_connections_per_ip=1, trusted_proxies="127.0.0.1") as (url,):
        socket_url = url.replace("http", "ws") + f"/ws?sessionId={uuid4()}"
        async with await WsClient.connect(socket_url, headers={"X-Forwarded-For": texts[0]}) as first:
            assert (await first.recv())["type"] == "CONNECTED"
            for text in texts:
                async with await WsClient.connect(socket_url, headers={"X-Forwarded-For": text}) as another:
                    closed = await another.recv()
                    assert isinstance(closed, Closed)
                    assert closed.code == 4004, text
            await first.fence()
