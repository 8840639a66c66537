"""Every way to Redis that an URL can name leads there, and what cannot be used is refused by name."""

import asyncio
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import broker.checks
from broker import examine
from broker.cluster.broker import ClusterBroker
from broker.endpoint import parse
from broker.redis import RedisBroker
from lockstep.config import Settings, masked
from lockstep.contract import Affected, Attendance
from lockstep.metrics import Metrics
from tests.support.load import chess
from tests.support.processes import ServerProcess, wait_until
from tests.support.redis_server import RedisServer, Sentinels, free_port
from tests.support.variants import first_of
from tests.support.ws_client import WsClient


class Deaf:
    """A listener that nothing is asked of."""

    def on_published(self, payload: bytes) -> None: ...
    def on_relayed(self, session_id: str, payload: bytes) -> None: ...
    def on_presence(
        self, session_id: str, process: str, attendances: dict[str, Attendance | None] | None
    ) -> None: ...

    def on_gap(self, affected: Affected | None = None) -> None: ...


async def reaches(url: str) -> bool:
    there = RedisBroker(
        url, prefix=f"{uuid.uuid4()}-", routing="all", allow_eviction=False, metrics=Metrics()
    )
    try:
        async with asyncio.timeout(10):
            await there.start(Deaf())
        return await there.load(["x"]) == [None] and there.not_ready() == []
    finally:
        await there.close()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.fail("openssl is missing: install Debian's package openssl", pytrace=False)
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem "
    make += "-out cert.pem -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(make.split(), cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


async def test_a_tcp_url_with_user_password_and_database_leads_there() -> None:
    own = RedisServer()
    try:
        with own.client as client:
            client.acl_setuser(
                "app", enabled=True, passwords=["+s3cr:t"], keys="*", channels="*", commands=["+@all"]
            )
            client.acl_setuser("default", enabled=False)
        assert await reaches(f"redis://app:s3cr%3At@127.0.0.1:{own.port}/3")
    finally:
        own.close()


async def test_a_unix_socket_leads_there(tmp_path: Path) -> None:
    own = RedisServer("--unixsocket", str(tmp_path / "redis.sock"))
    try:
        assert await reaches(f"unix://{tmp_path}/redis.sock?db=1")
    finally:
        own.close()


async def test_tls_leads_there_and_refuses_a_stranger(certificate: Path) -> None:
    port = free_port()
    files = {"tls-cert-file": "cert.pem", "tls-key-file": "key.pem", "tls-ca-cert-file": "cert.pem"}
    options = [text for name, file in files.items() for text in (f"--{name}", str(certificate / file))]
    own = RedisServer("--tls-port", str(port), "--tls-auth-clients", "no", *options)
    try:
        assert await reaches(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}/cert.pem")
        stranger = parse(f"rediss://127.0.0.1:{port}/0")
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await stranger.connect(asyncio.Protocol)
    finally:
        own.close()


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster", "rediss+cluster"])
def test_user_and_password_may_stand_before_the_hosts_or_among_the_options(scheme: str) -> None:
    before = parse(f"{scheme}://app:s%40cret@127.0.0.1:6379")
    among = parse(f"{scheme}://127.0.0.1:6379/?username=app&password=s%40cret")
    for each in (before, among):
        assert (each.username, each.password) == ("app", "s@cret")
        assert "cret" not in each.shown
    apart = parse(f"{scheme}://app@127.0.0.1:6379/?password=s%40cret")
    assert (apart.username, apart.password) == ("app", "s@cret")


async def test_a_cluster_is_reached_by_tls(certificate: Path) -> None:
    """By a node that does not know its own address, as one that has met no other."""
    port = free_port()
    files = {"tls-cert-file": "cert.pem", "tls-key-file": "key.pem", "tls-ca-cert-file": "cert.pem"}
    options = [text for name, file in files.items() for text in (f"--{name}", str(certificate / file))]
    tls = ("--tls-port", str(port), "--tls-auth-clients", "no", "--tls-cluster", "yes", *options)
    own = RedisServer("--cluster-enabled", "yes", "--cluster-port", str(free_port()), *tls)
    try:
        with own.client as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
            wait_until(
                lambda: "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO")), what="it"
            )
        url = f"rediss+cluster://127.0.0.1:{port}?ssl_ca_certs={certificate}/cert.pem"
        async with asyncio.timeout(10):
            there = ClusterBroker(url, "", "all", allow_eviction=False, metrics=Metrics())
            await there.start(Deaf())
            assert await there.load([str(uuid.uuid4())]) == [None]
            await there.close()
    finally:
        own.close()


async def test_an_old_redis_is_refused_by_its_version(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.checks, "OLDEST_REDIS", (99, 0))
    with pytest.raises(ValueError, match=r"Redis is \d+\.\d+.*needed"):
        await reaches(redis_server.url)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://:hush@127.0.0.1:port/0", "broker: 'redis://***@127.0.0.1:port/0' cannot be used: its port"),
        ("redis://:hush@127.0.0.1:99999/0", "its port is not one from 1 to 65535"),
        ("redis://:hush@127.0.0.1:0", "its port is not one from 1 to 65535"),
        ("redis://:hush@[::1]:99999", "its port is not one from 1 to 65535"),
        ("redis://:hush@127.0.0.1/zero", "/db, a number"),
        ("redis://:hush@127.0.0.1/0?ssl_ca_cert=x", "ssl_ca_cert is none of its options"),
        ("rediss://:hush@127.0.0.1/0?ssl_ca_certs=/nowhere", "its certificates cannot be read"),
        ("redis://:hush@", "it names no host"),
        ("redis://:hush@ 127.0.0.1", "a space"),
        ("redis://", "it names no host"),
        ("redis:/:hush@127.0.0.1", "the scheme must be"),
        ("redis:/x", "the scheme must be"),
        ("http://:hush@127.0.0.1/0", "the scheme must be"),
        ("hush@localhost:6379", "the scheme must be"),
        ("localhost:6379", "the scheme must be"),
        ("memory", "the scheme must be"),
        ("", "the scheme must be"),
        ("unix://", "it names no socket"),
        ("redis+sentinel://:hush@127.0.0.1:99999/service", "is not host:port"),
        ("redis+sentinel://:hush@127.0.0.1:26379", "/service"),
        ("redis+sentinel://:hush@::1:26379/service", "is not host:port"),
        ("redis+sentinel://:hush@[::1:26379/service", "is not host:port"),
        ("redis+sentinel://:hush@[::1]/service", "is not host:port"),
        ("redis+sentinel://:hush?hush@127.0.0.1:1/service", "is not host:port"),
        ("redis+sentinel://127.0.0.1:1/service?password=hush", "options of Sentinel"),
        ("redis+sentinel://127.0.0.1:1?sentinel_password=hush", "/service"),
        ("redis://127.0.0.1:0/0?password=hush", "its port"),
        ("redis://127.0.0.1:0/0?password=hu@sh&db=hush", "its port"),
        ("redis+sentinel://:hush@127.0.0.1/service", "is not host:port"),
    ],
)
def test_an_url_that_cannot_be_used_is_named_without_its_password(url: str, complaint: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - what it says is what is tested
        parse(url)
    assert complaint in str(refused.value)
    assert "redis://127.0.0.1:6379/0" in str(refused.value), "what one looks like"
    assert "hush" not in str(refused.value)


def test_a_sentinel_url_names_all_there_is_to_know() -> None:
    endpoint = parse("redis+sentinel://user:p%40ss@one:26379,two:26380/service/2")
    assert endpoint.sentinels == (("one", 26379), ("two", 26380))
    assert (endpoint.service, endpoint.db) == ("service", 2)
    assert (endpoint.username, endpoint.password) == ("user", "p@ss")
    assert "p@ss" not in endpoint.shown
    assert "p%40ss" not in endpoint.shown


def test_a_sentinel_url_has_passwords_for_both() -> None:
    hosts = "one:26379,[::1]:26380,[2001:db8::2]:26381"
    endpoint = parse(
        f"redis+sentinel://app:r%40%2F@{hosts}/service/1?sentinel_username=watch&sentinel_password=s+%26%2B1"
    )
    assert endpoint.sentinels == (("one", 26379), ("::1", 26380), ("2001:db8::2", 26381))
    assert (endpoint.username, endpoint.password) == ("app", "r@/")
    assert (endpoint.sentinel_username, endpoint.sentinel_password) == ("watch", "s+&+1")
    assert "r%40" not in endpoint.shown
    assert "s+%26" not in endpoint.shown
    assert endpoint.shown.startswith(f"redis+sentinel://app:***@{hosts}/service/1")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:hush@host:1/0", "redis://user:***@host:1/0"),
        ("redis://host:1/0?password=hu@sh", "redis://host:1/0?password=***"),
        ("redis+sentinel://h:1/s?sentinel_username=u&sentinel_password=hush", None),
        ("redis+sentinel://:hush@h:1/s?sentinel_password=hush", None),
        ("unix:///run/r.sock?db=0&password=hush", "unix:///run/r.sock?db=0&password=***"),
        ("hush@host", "***@host"),
    ],
)
def test_a_password_is_shown_nowhere(url: str, shown: str | None) -> None:
    assert masked("broker", url) == shown or shown is None
    assert "hush" not in masked("broker", url)


async def test_an_ipv6_url_leads_there() -> None:
    own = RedisServer("--bind", "127.0.0.1", "::1", "--requirepass", "hush", wait=False)
    try:
        assert await reaches(f"redis://:hush@[::1]:{own.port}/1")
    finally:
        own.close()


class GuardedSentinels(Sentinels):
    """Redis and Sentinel have passwords of their own, and listen to IPv6, too."""

    def __init__(self) -> None:
        self.master = RedisServer("--bind", "127.0.0.1", "::1", "--requirepass", "redis-hush", wait=False)
        self.replica = self.master
        self._folder = Path(tempfile.mkdtemp(prefix="lockstep-sentinel-"))
        self.ports = [free_port()]
        config = self._folder / "sentinel.conf"
        config.write_text(
            f"port {self.ports[0]}\nbind 127.0.0.1 ::1\ndir {self._folder}\nrequirepass sentinel-hush\n"
            f"sentinel monitor lockstep 127.0.0.1 {self.master.port} 1\n"
            "sentinel auth-pass lockstep redis-hush\n"
        )
        process = subprocess.Popen(
            ["redis-server", str(config), "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._sentinels = [(process, self._folder)]


@pytest.fixture(scope="module")
def guarded() -> Iterator[GuardedSentinels]:
    sentinels = GuardedSentinels()
    yield sentinels
    sentinels.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_passwords_of_sentinel_and_of_redis_lead_to_the_master(
    guarded: GuardedSentinels, host: str
) -> None:
    place = f"{host}:{guarded.ports[0]}/lockstep/1"
    assert await reaches(f"redis+sentinel://:redis-hush@{place}?sentinel_password=sentinel-hush")
    both = "sentinel_username=default&sentinel_password=sentinel-hush"
    assert await reaches(f"redis+sentinel://default:redis-hush@{place}?{both}")


@pytest.mark.parametrize(
    ("redis_password", "sentinel_password", "complaint"),
    [
        (":redis-hush@", "", "Sentinel: NOAUTH"),
        (":redis-hush@", "?sentinel_password=wrong-hush", "Sentinel: WRONGPASS"),
        ("", "?sentinel_password=sentinel-hush", "broker: NOAUTH"),
        (":wrong-hush@", "?sentinel_password=sentinel-hush", "broker: WRONGPASS"),
    ],
)
async def test_a_wrong_password_ends_the_start_and_says_whose_it_is(
    guarded: GuardedSentinels, redis_password: str, sentinel_password: str, complaint: str
) -> None:
    url = f"redis+sentinel://{redis_password}127.0.0.1:{guarded.ports[0]}/lockstep{sentinel_password}"
    good = (
        f"redis+sentinel://:redis-hush@127.0.0.1:{guarded.ports[0]}/lockstep?sentinel_password=sentinel-hush"
    )
    assert await reaches(good), "by now Sentinel knows its master"
    with pytest.raises(ValueError, match=complaint) as refused:
        await reaches(url)
    assert "hush" not in str(refused.value)


async def test_a_password_that_is_changed_is_in_the_log_and_not_a_timeout(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = RedisServer()
    there = RedisBroker(own.url, prefix="", routing="all", allow_eviction=False, metrics=Metrics())
    try:
        await there.start(Deaf())
        with own.client as client:
            client.config_set("requirepass", "hush")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        async with asyncio.timeout(20):
            while "NOAUTH" not in caplog.text:
                await asyncio.sleep(0.02)
        assert "timed out" not in caplog.text
    finally:
        await there.close()
        own.close()


async def test_too_many_clients_are_in_the_log_and_not_a_timeout(caplog: pytest.LogCaptureFixture) -> None:
    own = RedisServer("--maxclients", "1")
    with own.client as client:
        client.ping()  # and stays
        there = RedisBroker(own.url, prefix="", routing="all", allow_eviction=False, metrics=Metrics())
        starting = asyncio.create_task(there.start(Deaf()))
        try:
            async with asyncio.timeout(20):
                while "max number of clients" not in caplog.text:
                    await asyncio.sleep(0.02)
        finally:
            starting.cancel()
            await there.close()
            own.close()


# --- what answers as Redis does, and is another thing ---------------------------------------------


async def test_a_redis_cluster_ends_the_start_with_one_line_and_the_doctor_says_so() -> None:
    # Its bus is 10,000 ports above.
    port = next(port for port in iter(free_port, None) if port < 55_000)
    own = RedisServer("--cluster-enabled", "yes", port=port)
    try:
        with own.client as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        for prefix in ("", "{lockstep}:"):
            process = ServerProcess(f"--broker={own.url}", f"--prefix={prefix}", wait=False)
            out, err = await asyncio.to_thread(process.process.communicate, timeout=20)
            assert (process.process.returncode, out) == (1, b"")
            (line,) = err.decode().splitlines()
            assert "Redis Cluster" in line
        findings = await examine(Settings(broker=own.url))
        ((is_ok, text),) = findings
        assert not is_ok
        assert "Redis Cluster" in text
    finally:
        own.close()


async def test_the_doctor_ends_where_redis_takes_only_one_connection_and_says_what_to_do() -> None:
    own = RedisServer("--maxclients", "1")
    try:
        async with asyncio.timeout(20):
            findings = await examine(Settings(broker=own.url))
        (told,) = [text for is_ok, text in findings if not is_ok and "Pub/Sub" in text]
        assert "maxclients" in told
    finally:
        own.close()


async def test_the_doctor_finds_no_fault_in_what_a_user_is_not_shown() -> None:
    own = RedisServer()
    try:
        with own.client as client:
            client.execute_command("ACL", "SETUSER", "default", "-info", "-config")
        findings = await examine(Settings(broker=own.url))
        assert [text for is_ok, text in findings if not is_ok] == []
        for what in ("Redis version", "eviction", "persistence"):
            assert (True, f"{what}: not shown to this user (INFO)") in findings
    finally:
        own.close()


async def test_a_sentinel_that_is_named_as_a_redis_ends_the_start(guarded: GuardedSentinels) -> None:
    with pytest.raises(ValueError, match=r"this is a Sentinel: name it as redis\+sentinel"):
        await reaches(f"redis://:sentinel-hush@127.0.0.1:{guarded.ports[0]}")


@pytest.mark.parametrize("prefix", first_of(["app[1]:", "a*:", "a?b:", "a\\b:", "[", "a^-]:", "*"]))
@pytest.mark.parametrize("routing", first_of(["targeted", "all"]))
async def test_a_prefix_stands_for_itself_whatever_is_in_it(prefix: str, routing: str) -> None:
    own = RedisServer()
    servers = [
        ServerProcess(
            f"--broker={own.url}", f"--prefix={prefix}", f"--routing={routing}", "--log-level=warning"
        )
        for _ in range(2)
    ]
    try:
        session_id = str(uuid.uuid4())
        async with await WsClient.connect(f"{servers[0].ws_url}/ws?sessionId={session_id}") as client:
            assert (await client.recv())["type"] == "CONNECTED"
            created = await servers[1].call("POST", "/v1/sessions", chess() | {"session_id": session_id})
            assert created.status == 201
            assert (await client.recv())["type"] == "STATE_UPDATE"
            note = {"type": "NOTE", "text": "x"}
            path = f"/v1/sessions/{session_id}"
            assert (await servers[1].call("POST", f"{path}/messages", note)).status == 202
            assert await client.recv() == note
            assert (await servers[1].call("DELETE", path)).status == 204
            assert (await client.recv())["type"] == "SESSION_DELETED"
        with own.client as redis:
            # Of a name that the pattern would match if the prefix were one itself.
            heard = redis.publish(f"appX1:aZb:ws:{session_id}", "{}")
            assert heard == 0
            assert all(key.decode().startswith(prefix) for key in redis.scan_iter("*"))
    finally:
        for server in servers:
            server.stop()
        own.close()


async def test_a_user_of_a_prefix_with_glob_characters_needs_no_more_than_is_said() -> None:
    own = RedisServer()
    try:
        lines = ["~app\\[1]:*", "&app\\[1]:*", "&app\\[1]:ws:*"]
        with own.client as client:
            client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "+@all", *lines)
        url = f"redis://app:secret@127.0.0.1:{own.port}/0"
        there = RedisBroker(url, prefix="app[1]:", routing="all", allow_eviction=False, metrics=Metrics())
        async with asyncio.timeout(10):
            await there.start(Deaf())
        assert there.not_ready() == []
        await there.close()
        with own.client as client:
            client.execute_command("ACL", "SETUSER", "app", "resetchannels", "&other:*")
        there = RedisBroker(url, prefix="app[1]:", routing="all", allow_eviction=False, metrics=Metrics())
        with pytest.raises(ValueError, match=r"give it .*&app\\\[1\]:ws:\*"):
            await there.start(Deaf())
        await there.close()
    finally:
        own.close()
