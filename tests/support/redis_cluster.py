"""A Redis Cluster of the tests' own, whose nodes can be killed, frozen, cut off and given other slots."""

import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from tests.support.processes import wait_until
from tests.support.redis_server import NAMELESS, RedisServer
from tests.support.shifted_redis import ShiftedClock
from tests.support.switchboard import Switchboard

SLOTS = 16_384
# Long enough for a busy machine: what takes over does so because a test wants it.
NODE_TIMEOUT_MS = 2_000


def lasting_port() -> int:
    """A free one that the system gives to no connection, so that a node that was killed has it again."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


# Redis gives up a failover after 5 s, as where a busy node answers late; then it is asked for again.
FAILOVER_S = 6.0


class ClusterNode(RedisServer):
    """One node. Others reach it by `announced_port`, which is another than `port` where it can be cut off."""

    def __init__(
        self,
        place: int,
        node_timeout_ms: int,
        board: Switchboard | None,
        options: tuple[str, ...],
        clock: ShiftedClock | None = None,
    ) -> None:
        port, bus_port = lasting_port(), lasting_port()
        self.announced_port, self.announced_bus_port, announced = port, bus_port, ()
        if board is not None:
            # The address by which the switchboard knows whose connection it is.
            address = f"127.0.1.{place + 1}"
            self.announced_port = board.lead_to(port, place, address)
            self.announced_bus_port = board.lead_to(bus_port, place, address)
            announced = (
                *("--bind-source-addr", address, "--cluster-announce-port", str(self.announced_port)),
                *("--cluster-announce-bus-port", str(self.announced_bus_port)),
            )
        self.place = place
        self.id = ""
        super().__init__(
            *("--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms)),
            *("--cluster-port", str(bus_port), "--cluster-announce-ip", "127.0.0.1"),
            # Without a wait before a replica is sent all, and however old what it has: it is to take over.
            *("--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0"),
            *announced,
            *options,
            port=port,
            wait=False,
            env=None if clock is None else clock.env,
        )

    @property
    def client(self) -> "redis.Redis":
        # Not tried again: what tells that a node is away is to tell it at once.
        return redis.Redis(port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0), **NAMELESS)

    @property
    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def answers(self) -> bool:
        if self.has_ended:
            return False
        try:
            never = Retry(NoBackoff(), 0)
            with redis.Redis(port=self.port, socket_timeout=0.5, retry=never, **NAMELESS) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def restart(self) -> None:
        """End it in good order, with all that it keeps, and start it anew."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait()
        self.start()

    def ask(self, *words: str | bytes | int) -> object:
        """One command to this very node."""
        with self.client as client:
            return client.execute_command(*words)

    def info(self, section: str) -> dict[str, str]:
        with self.client as client:
            return {str(name): str(value) for name, value in client.info(section).items()}


class SlotMove:
    """A slot on its way to another master, as redis-cli moves it, in steps that a test takes."""

    def __init__(self, cluster: "RedisCluster", slot: int, to: ClusterNode) -> None:
        self.slot, self.source, self.target = slot, cluster.master_of(slot), to
        self._cluster = cluster
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.source.id)
        self.source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)

    def remaining_keys(self, count: int = 1_000_000) -> list[bytes]:
        """What is still at the source."""
        found = self.source.ask("CLUSTER", "GETKEYSINSLOT", self.slot, count)
        assert isinstance(found, list)
        return found

    def move(self, count: int = 1_000_000) -> int:
        """Move so many keys; returns how many there were."""
        keys = self.remaining_keys(count)
        self.move_these(keys)
        return len(keys)

    def move_these(self, keys: list[bytes]) -> None:
        """Move these keys, and leave the others."""
        if keys:
            address = ("127.0.0.1", self.target.announced_port)
            self.source.ask("MIGRATE", *address, "", 0, 5_000, "REPLACE", "KEYS", *keys)

    def finish(self) -> None:
        """Move what is left, and say to all whose slot it is."""
        while self.move(100):
            pass
        for node in (self.target, self.source, *self._cluster.masters()):
            node.ask("CLUSTER", "SETSLOT", self.slot, "NODE", self.target.id)


class RedisCluster:
    """Masters with replicas on loopback. `can_cut`: its nodes can be cut off (see `cut_off`)."""

    def __init__(
        self,
        *options: str,
        masters: int = 3,
        replicas: int = 1,
        node_timeout_ms: int = NODE_TIMEOUT_MS,
        can_cut: bool = False,
        clocks_ahead_s: Sequence[float] = (),
    ) -> None:
        """`options` are redis-server's, for every node; `clocks_ahead_s`, how far their clocks are ahead."""
        self._board = Switchboard() if can_cut else None
        self._clocks = [ShiftedClock(ahead_s) for ahead_s in clocks_ahead_s]
        self.nodes: list[ClusterNode] = []
        try:
            for place in range(masters * (1 + replicas)):
                clock = self._clocks[place] if self._clocks else None
                self.nodes.append(self._started(place, node_timeout_ms, options, clock))
            self._join(masters)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'127.0.0.1:{node.announced_port}' for node in self.nodes)}"

    @property
    def client(self) -> "redis.RedisCluster":
        """The library's, for what a test puts there or looks at."""
        return redis.RedisCluster(host="127.0.0.1", port=self.alive()[0].announced_port, socket_timeout=5)

    def _started(
        self, place: int, node_timeout_ms: int, options: tuple[str, ...], clock: ShiftedClock | None
    ) -> ClusterNode:
        """Tried again where another test was faster to take a port."""
        for _ in range(5):
            node = ClusterNode(place, node_timeout_ms, self._board, options, clock)
            wait_until(lambda node=node: node.answers() or node.has_ended, what="a node")
            if not node.has_ended:
                return node
            node.close()
        raise AssertionError("redis-server does not start as a node of a cluster")

    def _join(self, masters: int) -> None:
        for node in self.nodes:
            node.wait_until_up()
            node.id = _text(node.ask("CLUSTER", "MYID"))
        for place, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", place + 1)
            if place < masters:
                first, end = SLOTS * place // masters, SLOTS * (place + 1) // masters
                node.ask("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            for other in self.nodes[:place]:
                node.ask("CLUSTER", "MEET", "127.0.0.1", other.announced_port, other.announced_bus_port)
        for place, node in enumerate(self.nodes[masters:]):
            master = self.nodes[place % masters]
            wait_until(lambda node=node, master=master: _replicates(node, master), what="the introduction")
        self.wait_until_whole()

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        if self._board is not None:
            self._board.close()
        for clock in self._clocks:
            clock.close()

    def alive(self) -> list[ClusterNode]:
        """The nodes that answer."""
        return [node for node in self.nodes if node.answers()]

    def ranges(self) -> list[tuple[tuple[int, int], str]]:
        """Whose each range of slots is, as that node sees it which has seen the newest configuration."""
        newest = max(self._reachable(), key=lambda node: int(_cluster_info(node)["cluster_current_epoch"]))
        return list(_slot_ranges(newest))

    def masters(self) -> list[ClusterNode]:
        """The nodes that have slots, in the order of their first slots."""
        owners = dict.fromkeys(owner for _, owner in sorted(self.ranges()))
        return [self._by_id(owner) for owner in owners]

    def master_of(self, slot: int) -> ClusterNode:
        return self._by_id(next(owner for (first, last), owner in self.ranges() if first <= slot <= last))

    def master_of_key(self, key: str) -> ClusterNode:
        return self.master_of(key_slot(key.encode()))

    def other_master(self, *masters: ClusterNode) -> ClusterNode:
        """One that is none of these."""
        return next(node for node in self.masters() if node not in masters)

    def replicas_of(self, master: ClusterNode) -> list[ClusterNode]:
        """Those that follow it by their own account."""
        return [
            node
            for node in self.alive()
            if node.info("replication").get("master_port") == str(master.announced_port)
        ]

    def failover(self, master: ClusterNode) -> ClusterNode:
        """Its replica takes over in good order; returns the new master, once every node knows it."""
        replica = self.replicas_of(master)[0]
        slot = self._first_slot(master)
        given_up_at_s = 0.0

        def has_taken_over() -> bool:
            nonlocal given_up_at_s
            if replica.info("replication")["role"] == "master":
                return True
            if time.monotonic() > given_up_at_s:
                replica.ask("CLUSTER", "FAILOVER")
                given_up_at_s = time.monotonic() + FAILOVER_S
            return False

        wait_until(has_taken_over, 100, f"the failover to node {replica.place}")
        self.wait_until_served_by(slot, replica)
        return replica

    def replacement(self, master: ClusterNode, slot: int, timeout_s: float = 30.0) -> ClusterNode:
        """Who serves the slot of a master that is away, once all that answer know it."""

        def taken_over() -> ClusterNode | None:
            try:
                owner = self.master_of(slot)
            except (redis.RedisError, StopIteration):
                return None
            return None if owner is master else owner

        replica: ClusterNode = wait_until(taken_over, timeout_s, f"the failover of slot {slot}")
        self.wait_until_served_by(slot, replica)
        return replica

    def wait_until_served_by(self, slot: int, master: ClusterNode, timeout_s: float = 30.0) -> None:
        """Until every node that answers and is not cut off says that it is this one."""

        def all_agree() -> bool:
            return all(_owner(node, slot) == master.id for node in self._reachable())

        wait_until(lambda: _quietly(all_agree), timeout_s, f"slot {slot} of node {master.place}")

    def wait_until_whole(self, timeout_s: float = 30.0) -> None:
        """Until all slots are served, and each master has as many replicas in step as there are to have."""
        count = len(self.nodes)

        def is_whole() -> bool:
            for node in self.nodes:
                known = _cluster_info(node)
                seen = (known["cluster_state"], known["cluster_slots_ok"], known["cluster_known_nodes"])
                if seen != ("ok", str(SLOTS), str(count)):
                    return False
                replication = node.info("replication")
                if replication["role"] == "slave" and replication["master_link_status"] != "up":
                    return False
            return True

        wait_until(lambda: _quietly(is_whole), timeout_s, "a whole cluster")

    def move(self, slot: int, to: ClusterNode) -> SlotMove:
        """Begin to move a slot; keys go over step by step."""
        return SlotMove(self, slot, to)

    def reshard(self, slot: int, to: ClusterNode) -> None:
        """Move a slot with all its keys."""
        if self.master_of(slot) is not to:
            self.move(slot, to).finish()
            self.wait_until_served_by(slot, to)

    def cut_off(self, *nodes: ClusterNode) -> None:
        """Nothing goes to or from these nodes any more, other nodes and clients alike; each still runs."""
        assert self._board is not None, "RedisCluster(can_cut=True)"
        self._board.cut({node.place for node in nodes})

    def reconnect(self) -> None:
        """Undo all of `cut_off`."""
        assert self._board is not None
        self._board.cut(set())

    @contextmanager
    def answering_with(self, said: bytes, instead: bytes) -> Iterator[None]:
        """Where nodes say the one, others are told the other, of the same length."""
        assert self._board is not None, "RedisCluster(can_cut=True)"
        assert len(said) == len(instead)
        self._board.on_reply = lambda data: data.replace(said, instead)
        try:
            yield
        finally:
            self._board.on_reply = lambda data: data

    def flush(self) -> None:
        """Empty all masters."""
        for master in self.masters():
            master.ask("FLUSHALL")

    def _reachable(self) -> Iterator[ClusterNode]:
        cut = set() if self._board is None else self._board.cut_places
        return (node for node in self.alive() if node.place not in cut)

    def _first_slot(self, master: ClusterNode) -> int:
        return min(first for (first, _), owner in self.ranges() if owner == master.id)

    def _by_id(self, node_id: str) -> ClusterNode:
        return next(node for node in self.nodes if node.id == node_id)


def _text(answer: object) -> str:
    return answer.decode() if isinstance(answer, bytes) else str(answer)


def _replicates(node: ClusterNode, master: ClusterNode) -> bool:
    try:
        node.ask("CLUSTER", "REPLICATE", master.id)
    except redis.ResponseError:
        return False  # it does not know the master yet
    return True


def _quietly(condition: Callable[[], bool]) -> bool:
    """Whether it holds; a node that does not answer yet has nothing to say."""
    try:
        return condition()
    except (redis.RedisError, KeyError):
        return False


def _cluster_info(node: ClusterNode) -> dict[str, str]:
    with node.client as client:
        return {str(name): str(value) for name, value in client.cluster("INFO").items()}


def _slot_ranges(node: ClusterNode) -> Iterator[tuple[tuple[int, int], str]]:
    with node.client as client:
        client.response_callbacks.clear()
        for first, last, (_, _, node_id, *_), *_ in client.execute_command("CLUSTER", "SLOTS"):
            yield (first, last), _text(node_id)


def _owner(node: ClusterNode, slot: int) -> str | None:
    return next((owner for (first, last), owner in _slot_ranges(node) if first <= slot <= last), None)
