"""Pages of other sites: which may call, from what address, and that the rest can change nothing."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, Page

from handlers.origins import Hosts, Origins
from lockstep.config import read_settings
from tests.support.api import COMMANDS
from tests.support.browser import chromium
from tests.support.processes import Answer, ServerProcess, read_answer, wait_until
from tests.support.ws_client import WsClient

SOME_ID = "5e000000-0000-4000-8000-000000000000"
LISTED = (
    "https://app.example, https://*.example.org, http://*.dev.example:8443, capacitor://localhost, "
    "ionic://localhost, tauri://localhost, chrome-extension://abcdefghijklmnopabcdefghijklmnop, null, "
    "HTTPS://Shop.Example:443, http://[2001:DB8:0::1]:80, https://bücher.example"
)
ADMITTED = [
    "https://app.example",
    "https://a.example.org",
    "https://a.b.example.org",
    "http://a.dev.example:8443",
    "capacitor://localhost",
    "ionic://localhost",
    "tauri://localhost",
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
    "null",
    "https://shop.example",
    "http://[2001:db8::1]",
    "https://xn--bcher-kva.example",
]
REFUSED = [
    "http://app.example",
    "https://app.example:8443",
    "https://app.example.evil.example",
    "https://example.org",
    "https://evilexample.org",
    "https://.example.org",
    "https://evil.example/a.example.org",
    "https://evil@a.example.org",
    "https://evil.example:1.example.org",
    "http://a.example.org",
    "https://a.example.org:8443",
    "http://a.dev.example",
    "http://a.dev.example:84430",
    "http://dev.example:8443",
    "capacitor://other",
    "tauri://localhost.evil.example",
    "chrome-extension://other",
    "http://[2001:db8::2]",
    "https://*.example.org",
    "*",
    "",
]


def origins_of(setting: str) -> Origins:
    return Origins(read_settings([f"--origins={setting}"], {}).allowed_origins)


@pytest.mark.parametrize("origin", ADMITTED)
def test_a_listed_origin_is_admitted_as_browsers_send_it(origin: str) -> None:
    origins = origins_of(LISTED)
    assert origins.admits(origin, "clock.example")
    assert origins.headers(origin)["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize("origin", REFUSED)
def test_an_origin_that_only_resembles_a_listed_one_is_not_admitted(origin: str) -> None:
    origins = origins_of(LISTED)
    assert not origins.admits(origin, "clock.example")
    assert origins.headers(origin) == {"Vary": "Origin"}


def test_null_is_admitted_only_where_it_is_asked_for() -> None:
    assert not origins_of("").admits("null", "clock.example")
    assert not origins_of("https://app.example").admits("null", "")
    assert origins_of("null").admits("null", "clock.example")


@pytest.mark.parametrize(
    ("origin", "host", "is_own"),
    [
        ("https://clock.example", "clock.example", True),
        ("http://clock.example", "clock.example", True),
        ("https://clock.example", "Clock.Example", True),
        ("https://clock.example", "clock.example:443", True),
        ("http://clock.example", "clock.example:80", True),
        ("http://clock.example", "clock.example:443", False),
        ("https://clock.example:8443", "clock.example:8443", True),
        ("https://clock.example:8443", "clock.example", False),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("capacitor://localhost", "localhost", False),
        ("null", "", False),
        ("http://", "", False),
        ("", "", False),
    ],
)
def test_a_page_of_the_servers_own_is_known_by_its_host(origin: str, host: str, is_own: bool) -> None:
    assert origins_of("").admits(origin, host) is is_own


@pytest.mark.parametrize(
    ("host", "is_admitted"),
    [
        ("localhost", True),
        ("localhost:8080", True),
        ("LOCALHOST", True),
        ("127.0.0.1:8080", True),
        ("192.168.1.20", True),
        ("[::1]:8080", True),
        ("[2001:db8::1]", True),
        ("clock.local", True),
        ("Clock.local:8080", True),
        ("evil.example", False),
        ("evil.example:8080", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil-localhost", False),
        ("[evil]", False),
        ("localhost, evil.example", False),
        ("localhost:8080:1", False),
        ("localhost:99999", False),
        ("evil@localhost", False),
        ("", False),
    ],
)
def test_an_open_server_takes_addresses_localhost_and_names_of_its_own(host: str, is_admitted: bool) -> None:
    names = read_settings(["--hosts=Clock.Local"], {}).own_names
    assert Hosts(names).admits(host) is is_admitted


# --- a server ------------------------------------------------------------------------------------


@contextmanager
def serving(*args: str) -> Iterator[ServerProcess]:
    server = ServerProcess("--log-level=warning", *args)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """It lets pages of its own call, and those of app.example."""
    with serving("--origins=https://app.example") as process:
        yield process


def chess(session_id: str | None = None) -> dict[str, Any]:
    seats = [{"participant_id": str(uuid4()), "total_time_ms": 60_000} for _ in range(2)]
    return {"session_id": session_id or str(uuid4()), "sync_mode": "per_participant", "participants": seats}


async def created(server: ServerProcess) -> dict[str, Any]:
    answer = await server.call("POST", "/v1/sessions", chess())
    session: dict[str, Any] = answer.data
    return session


def refusal_of(answer: Answer) -> Any:
    assert (answer.status, answer.body["error"]["code"]) == (403, "FORBIDDEN"), answer.raw
    return answer.body["error"]["details"]["reason"]


def changes_of(session_id: str) -> list[tuple[str, str, Any]]:
    return [
        ("POST", "/v1/sessions", chess()),
        *(("POST", f"/v1/sessions/{session_id}/{name}", None) for name in COMMANDS),
        ("POST", f"/v1/sessions/{session_id}/messages", {"type": "NOTE"}),
        ("DELETE", f"/v1/sessions/{session_id}", None),
    ]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://app.example", ""])
async def test_no_change_is_taken_from_a_page_of_another_site(server: ServerProcess, origin: str) -> None:
    session = await created(server)
    path = f"/v1/sessions/{session['session_id']}"
    for method, where, body in changes_of(session["session_id"]):
        answer = await server.call(method, where, body, {"Origin": origin})
        assert refusal_of(answer) == "origin", where
        assert answer.headers["x-request-id"]
        assert "access-control-allow-origin" not in answer.headers
    assert (await server.call("GET", path)).data == session


async def test_changes_are_taken_from_pages_that_may_and_from_programs(server: ServerProcess) -> None:
    own = server.url.removeprefix("http://")
    for headers in ({}, {"Origin": f"http://{own}"}, {"Origin": "https://app.example"}):
        assert (await server.call("POST", "/v1/sessions", chess(), headers)).status == 201
    # A proxy that ends TLS passes the Host on.
    proxied = {"Origin": "https://localhost", "Host": "localhost"}
    assert (await server.call("POST", "/v1/sessions", chess(), proxied)).status == 201


async def test_a_page_of_another_site_may_ask_and_its_browser_keeps_the_answer(server: ServerProcess) -> None:
    session = await created(server)
    for path in (
        f"/v1/sessions/{session['session_id']}",
        "/v1/time",
        "/health",
        "/openapi.json",
        "/asyncapi.json",
    ):
        answer = await server.call("GET", path, None, {"Origin": "https://evil.example"})
        assert answer.status == 200
        assert "access-control-allow-origin" not in answer.headers


async def test_a_socket_for_a_page_of_another_site_is_refused_as_changes_are(server: ServerProcess) -> None:
    head = (
        f"GET /ws?sessionId={SOME_ID} HTTP/1.1\r\nHost: localhost\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        "Origin: https://evil.example\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(10):
        writer.write(head.encode())
        assert refusal_of(await read_answer(reader)) == "origin"
    writer.transport.abort()


GUARDED = ["/v1/sessions", f"/v1/sessions/{SOME_ID}", "/v1/time", "/v1/nowhere", "/", "/page.js", "/ws"]
PUBLIC = ["/health", "/ready", "/metrics"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "localhost.evil.example", "null"])
async def test_an_open_server_answers_no_page_whose_name_was_made_to_point_here(
    server: ServerProcess, host: str
) -> None:
    host = host.format(port=server.port)
    headers = {"Host": host, "Origin": f"http://{host}"}
    session = await created(server)
    for path in GUARDED:
        assert refusal_of(await server.call("GET", path, None, headers)) == "host", path
    for method, path, body in changes_of(session["session_id"]):
        assert refusal_of(await server.call(method, path, body, headers)) == "host", path
    for path in PUBLIC:
        assert (await server.call("GET", path, None, headers)).status == 200
    with pytest.raises(ConnectionRefusedError, match=" 403 "):
        await WsClient.connect(f"{server.ws_url}/ws?sessionId={SOME_ID}", headers=headers)
    assert (await server.call("GET", f"/v1/sessions/{session['session_id']}")).data == session


async def test_a_name_of_its_own_leads_to_an_open_server() -> None:
    with serving("--hosts=clock.local, Other.example") as server:
        for host in ("clock.local", f"clock.local:{server.port}", "other.example", "LOCALHOST:1", "[::1]"):
            answer = await server.call(
                "POST", "/v1/sessions", chess(), {"Host": host, "Origin": f"http://{host}"}
            )
            assert answer.status == 201, host
        assert refusal_of(await server.call("GET", "/v1/time", None, {"Host": "evil.example"})) == "host"


async def test_any_name_leads_to_a_server_that_tokens_protect_or_that_is_open_on_purpose(
    tmp_path: Path,
) -> None:
    (tmp_path / "secret").write_text("x" * 32)
    for setting in (f"--jwt-secret-file={tmp_path}/secret", "--insecure=yes"):
        with serving(setting) as server:
            headers = {"Host": "any.example"}
            assert (await server.call("GET", "/v1/time", None, headers)).status == 200
            assert (await server.call("GET", "/", None, headers)).status == 200


async def test_a_refused_page_is_a_line_in_the_log_that_names_it_and_the_setting(
    server: ServerProcess,
) -> None:
    own = server.url.removeprefix("http://")

    def lines(*words: str) -> list[dict[str, object]]:
        return [line for line in server.log() if all(word in str(line["message"]) for word in words)]

    async def refused(headers: dict[str, str], *words: str) -> None:
        async with asyncio.timeout(10):
            while not lines(*words):  # one line of a kind a second: the others here have theirs, too
                answer = await server.call(
                    "POST", "/v1/sessions", chess(), headers | {"X-Request-ID": "mine"}
                )
                assert answer.status == 403
                await asyncio.sleep(0.1)
        assert lines(*words)[0]["request_id"] == "mine"

    # As behind a proxy that passes another Host on than the page was called by.
    await refused(
        {"Origin": "https://clock.example"}, "'https://clock.example'", f"'{own}'", "--origins", "proxy"
    )
    await refused({"Host": "clock.example"}, "'clock.example'", "--hosts", "proxy")


# --- what pages ask for, and see -----------------------------------------------------------------

OWN_HEADERS = "content-type authorization if-match if-none-match idempotency-key idempotency-ttl x-request-id"
TRACING_HEADERS = "traceparent tracestate baggage sentry-trace"


@pytest.mark.parametrize("origin", ["https://app.example", "https://evil.example"])
async def test_a_preflight_allows_our_headers_and_those_of_tracing(
    server: ServerProcess, origin: str
) -> None:
    asked = (OWN_HEADERS + " " + TRACING_HEADERS).split()
    answer = await server.call(
        "OPTIONS",
        f"/v1/sessions/{SOME_ID}/switch",
        None,
        {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": ",".join(asked),
        },
    )
    allowed = answer.headers.get("access-control-allow-headers", "").lower().split(", ")
    assert answer.status == 204
    assert set(asked) <= set(allowed) or origin == "https://evil.example"
    assert ("access-control-allow-methods" in answer.headers) is (origin == "https://app.example")


# --- browsers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium("--host-resolver-rules=MAP *.example 127.0.0.1") as browser:
        yield browser


class Blank(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>another site</title>")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    """The port of another site, under whatever name."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Blank)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


TRICKS = """async ([url, id, spec]) => {
    const post = (path, init) => fetch(url + path, {method: 'POST', mode: 'no-cors', ...init});
    const command = `/v1/sessions/${id}/`;
    await post(command + 'start');
    await post(command + 'complete', {referrerPolicy: 'no-referrer'});
    await post('/v1/sessions', {body: new Blob([spec])});
    await post('/v1/sessions', {body: spec});
    await post(command + 'messages', {body: new Blob(['{"type":"NOTE"}'])});
    navigator.sendBeacon(url + command + 'start');
    navigator.sendBeacon(url + '/v1/sessions', new Blob([spec]));
    await fetch(url + command.slice(0, -1), {method: 'DELETE'}).catch(() => 0);
    const into = document.createElement('iframe');
    into.name = 'into';
    document.body.append(into);
    const form = Object.assign(document.createElement('form'), {method: 'POST', target: 'into'});
    form.action = url + command + 'start';
    document.body.append(form);
    const loaded = new Promise(resolve => { into.onload = resolve; });
    form.submit();
    await loaded;
    const sandboxed = Object.assign(document.createElement('iframe'), {sandbox: 'allow-scripts allow-forms'});
    sandboxed.srcdoc = `<script>fetch('${url}${command}start', {method: 'POST', mode: 'no-cors'})
        .finally(() => parent.postMessage('done', '*'))</script>`;
    const done = new Promise(resolve => { onmessage = resolve; });
    document.body.append(sandboxed);
    await done;
    const link = Object.assign(document.createElement('a'), {href: '#', ping: url + command + 'start'});
    document.body.append(link);
    link.click();
    const socket = new WebSocket(url.replace('http', 'ws') + '/ws?sessionId=' + id);
    const opened = await new Promise(resolve => {
        socket.onopen = () => resolve(true);
        socket.onerror = () => resolve(false);
    });
    const read = await fetch(url + '/v1/sessions').then(() => true, () => false);
    return {opened, read};
}"""


def fetched(server: ServerProcess, path: str, body: Any = None) -> bytes:
    """Without the event loop, which is the browser's here."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(server.url + path, data, {"Content-Type": "application/json"})
    with urlopen(request, timeout=10) as answer:
        raw: bytes = answer.read()
        return raw


def test_a_page_of_another_site_changes_nothing_at_an_open_server(page: Page, site: int) -> None:
    session = chess()
    with serving() as server:
        fetched(server, "/v1/sessions", session)
        before = fetched(server, "/v1/sessions")
        urls = [f"http://127.0.0.1:{server.port}", f"http://localhost:{server.port}"]
        for url in [*urls, f"http://evil.example:{server.port}"]:
            page.goto(f"http://evil.example:{site}/")
            told = page.evaluate(TRICKS, [url, session["session_id"], json.dumps(chess())])
            assert told == {"opened": False, "read": False}
        wait_until(lambda: count(server, "POST") >= 3 * 10, timeout_s=60, what="that all tricks have come")
        assert fetched(server, "/v1/sessions") == before


def count(server: ServerProcess, method: str) -> int:
    text = fetched(server, "/metrics").decode()
    lines = [line for line in text.splitlines() if line.startswith("lockstep_request_seconds_count")]
    return sum(int(float(line.split()[-1])) for line in lines if f'method="{method}"' in line)


def test_a_page_whose_name_was_made_to_point_here_sees_and_changes_nothing(page: Page) -> None:
    session = chess()
    with serving() as server:
        fetched(server, "/v1/sessions", session)
        before = fetched(server, "/v1/sessions")
        url = f"http://evil.example:{server.port}"
        # /health has no page, but is of the origin that the name makes.
        page.goto(f"{url}/health")
        assert page.evaluate("location.origin") == url
        statuses = page.evaluate(
            """async id => Promise.all([
                fetch('/v1/sessions'), fetch('/'), fetch('/v1/sessions/' + id, {method: 'DELETE'}),
                fetch('/v1/sessions/' + id + '/start', {method: 'POST'}),
            ].map(async each => (await each).status))""",
            session["session_id"],
        )
        assert statuses == [403, 403, 403, 403]
        assert fetched(server, "/v1/sessions") == before


CALL = """async ([url, spec]) => {
    const headers = {
        'Content-Type': 'application/json', 'X-Request-ID': 'mine',
        'Idempotency-Key': 'k', 'Idempotency-TTL': '60',
        traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', tracestate: 'a=b',
        baggage: 'a=b', 'sentry-trace': '0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331',
    };
    const first = await fetch(url + '/v1/sessions', {method: 'POST', headers, body: spec});
    const again = await fetch(url + '/v1/sessions', {method: 'POST', headers, body: spec});
    const place = first.headers.get('Location');
    const socket = new WebSocket(url.replace('http', 'ws') + '/ws?sessionId=' + place.split('/').pop());
    const type = await new Promise(resolve => {
        socket.onmessage = message => resolve(JSON.parse(message.data).type);
        socket.onerror = () => resolve('refused');
    });
    const head = await fetch(url + place, {method: 'HEAD'});
    const tag = head.headers.get('ETag');
    const gone = await fetch(url + place, {method: 'DELETE', headers: {'If-Match': tag}});
    return [first.status, again.headers.get('Idempotent-Replayed'), type, tag !== null, gone.status];
}"""


def test_a_page_of_a_listed_subdomain_does_all_that_a_page_can(page: Page, site: int) -> None:
    with serving(f"--origins=HTTP://*.App.Example:{site}") as server:
        page.goto(f"http://Board.App.example:{site}/")
        told = page.evaluate(CALL, [f"http://127.0.0.1:{server.port}", json.dumps(chess())])
    assert told == [201, "true", "CONNECTED", True, 204]
