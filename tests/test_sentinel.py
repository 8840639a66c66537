"""A process is where Sentinel points, also when the master of before goes on answering."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import hiredis
import pytest

from broker.sentinel import ask_for_master
from tests.support.listening import listening
from tests.support.load import chess, data, eventually, rest
from tests.support.processes import ServerProcess
from tests.support.redis_server import Sentinels
from tests.support.variants import first_of
from tests.support.ws_client import WsClient, abort_all

OLD, NEW = ("10.0.0.1", 6379), ("10.0.0.2", 6379)


@contextlib.asynccontextmanager
async def sentinel(*answer: Any) -> AsyncIterator[tuple[str, int]]:
    """One that answers (address, config-epoch, flags); an error by its text; nothing for nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            if len(answer) == 1:
                writer.write(f"-{answer[0]}\r\n".encode())
            elif answer:
                (host, port), epoch, flags = answer
                fields = ["name", "lockstep", "ip", host, "port", port, "flags", flags]
                fields += ["config-epoch", epoch]
                words = b"".join(hiredis.pack_command((str(each),)).partition(b"\r\n")[2] for each in fields)
                writer.write(f"*{len(fields)}\r\n".encode() + words)

    async with listening(serve) as server:
        yield server.sockets[0].getsockname()


@contextlib.asynccontextmanager
async def asked(*answers: tuple[Any, ...]) -> AsyncIterator[list[tuple[str, int]]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(sentinel(*answer)) for answer in answers]


@pytest.mark.parametrize(
    ("answers", "master"),
    [
        ([(OLD, 0, "master")], OLD),
        ([(OLD, 3, "master"), (NEW, 4, "master"), (OLD, 3, "master")], NEW),
        ([(NEW, 4, "master"), (NEW, 4, "master"), (OLD, 3, "master")], NEW),
        ([(), ("ERR No such master with that name",), (NEW, 1, "master")], NEW),
        ([(OLD, 1, "master"), (NEW, 2, "s_down,master"), (NEW, 2, "master")], NEW),
        ([(OLD, 0, "master"), (NEW, 0, "master"), (NEW, 0, "master")], NEW),
    ],
    ids=["one", "first of a failover", "one left behind", "one of three", "one sees it down", "set up anew"],
)
async def test_the_most_recent_configuration_counts_and_then_the_most(
    answers: list[tuple[Any, ...]], master: tuple[str, int]
) -> None:
    async with asked(*answers) as sentinels:
        assert await ask_for_master(sentinels, "lockstep") == master


@pytest.mark.parametrize(
    ("answers", "at_least", "complaint"),
    [
        ([(OLD, 0, "master"), (), ("NOAUTH Authentication required.",)], 2, "1 of 3"),
        ([("NOAUTH Authentication required.",)], 1, "NOAUTH"),
        ([(OLD, 3, "master"), (NEW, 4, "s_down,o_down,master")], 1, "down"),
    ],
    ids=["too few", "refused", "the newest is down"],
)
async def test_who_is_master_is_not_known_then(
    answers: list[tuple[Any, ...]], at_least: int, complaint: str
) -> None:
    async with asked(*answers) as sentinels:
        with pytest.raises(ConnectionError, match=complaint):
            await ask_for_master(sentinels, "lockstep", at_least)


@pytest.fixture
def topology() -> Iterator[Sentinels]:
    sentinels = Sentinels()
    yield sentinels
    sentinels.close()


@pytest.mark.parametrize("routing", first_of(["all", "targeted"]))
async def test_a_master_that_sentinel_has_replaced_is_left_though_it_lives(
    topology: Sentinels, routing: str
) -> None:
    start = (ServerProcess, f"--broker={topology.url}", f"--routing={routing}", "--log-level=warning")
    processes = [await asyncio.to_thread(*start) for _ in range(2)]
    try:
        session_id = data(await rest(f"{processes[0].url}/v1/sessions", chess()))["session_id"]
        data(await rest(f"{processes[0].url}/v1/sessions/{session_id}/start"))
        clients = [await WsClient.connect(f"{each.ws_url}/ws?sessionId={session_id}") for each in processes]
        for client in clients:
            await client.recv_type("CONNECTED")
        with topology.master.client as old, topology.replica.client as new:
            assert old.wait(1, 5000) == 1, "the replica has what the master has"
            await asyncio.to_thread(topology.depose)

            async def stranded() -> str:
                old_clients = [each["name"] for each in old.client_list()]
                return f"{old_clients.count('lockstep')} are still there" if "lockstep" in old_clients else ""

            await eventually(stranded, 15, "the old master was not left")
            was = old.get(f"session:{session_id}")
            for turn in range(4):
                answer = data(await rest(f"{processes[turn % 2].url}/v1/sessions/{session_id}/switch"))
            for client in clients:
                while (await client.recv())["state"]["version"] < answer["version"]:
                    pass
            assert old.get(f"session:{session_id}") == was, "a change was made at the old one"
            assert f'"version":{answer["version"]},'.encode() in (new.get(f"session:{session_id}") or b"")

        async def untold() -> str:
            logs = [[str(line["message"]) for line in process.log()] for process in processes]
            silent = [log for log in logs if not any("Sentinel names another master" in line for line in log)]
            return f"it does not stand in {silent}" if silent else ""

        await eventually(untold, 15, "a log does not say why it was left")
        for process in processes:
            assert (await rest(f"{process.url}/ready", method="GET")).code == 200
    finally:
        abort_all()
        for process in processes:
            await asyncio.to_thread(process.stop)


async def test_what_the_new_master_does_not_have_is_told(topology: Sentinels) -> None:
    process = await asyncio.to_thread(ServerProcess, f"--broker={topology.url}", "--log-level=warning")
    try:
        session_id = data(await rest(f"{process.url}/v1/sessions", chess()))["session_id"]
        data(await rest(f"{process.url}/v1/sessions/{session_id}/start"))
        client = await WsClient.connect(f"{process.ws_url}/ws?sessionId={session_id}")
        await client.recv_type("CONNECTED")
        with topology.master.client as old:
            assert old.wait(1, 5000) == 1, "the replica has what the master has"
        await asyncio.to_thread(topology.depose, f"session:{session_id}")
        assert (await client.recv_type("SESSION_DELETED", timeout_s=20))["sessionId"] == session_id
    finally:
        abort_all()
        await asyncio.to_thread(process.stop)


async def test_one_sentinel_that_is_left_behind_moves_nobody(topology: Sentinels) -> None:
    process = await asyncio.to_thread(ServerProcess, f"--broker={topology.url}", "--log-level=warning")
    try:
        # It alone names the replica, of a configuration that is not newer.
        topology.ask(topology.ports[0], "remove", "lockstep")
        topology.ask(topology.ports[0], "monitor", "lockstep", "127.0.0.1", str(topology.replica.port), "2")
        session_id = data(await rest(f"{process.url}/v1/sessions", chess()))["session_id"]
        data(await rest(f"{process.url}/v1/sessions/{session_id}/start"))
        for _ in range(30):
            data(await rest(f"{process.url}/v1/sessions/{session_id}/switch"))
            await asyncio.sleep(0.1)  # it asks once a second
        assert not [line for line in process.log() if "another master" in str(line["message"])]
    finally:
        abort_all()
        await asyncio.to_thread(process.stop)
