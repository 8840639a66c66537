"""Every way to Redis that an URL can name leads there, and what cannot be used is refused by name."""

import asyncio
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

import broker.redis
from broker.endpoint import parse
from broker.redis import RedisBroker
from tests.redis_server import RedisServer, free_port


class Deaf:
    """A listener that nothing is asked of."""

    def on_published(self, payload: bytes) -> None: ...
    def on_relayed(self, session_id: str, payload: bytes) -> None: ...
    def on_gap(self) -> None: ...


async def reaches(url: str) -> bool:
    there = RedisBroker(url, prefix=f"{uuid.uuid4()}-", routing="all", allow_eviction=False)
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


async def test_an_old_redis_is_refused_by_its_version(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.redis, "OLDEST_REDIS", (99, 0))
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
