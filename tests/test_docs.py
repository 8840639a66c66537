"""The pages for newcomers do what they say, and links lead where they should."""

import fnmatch
import functools
import http.server
import re
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ujson
from playwright.sync_api import Browser, Page, expect

from tests.support.bundles import JS_CLIENT, bundle
from tests.support.links import anchors_of, broken_links
from tests.support.processes import ROOT, ServerProcess
from tests.support.snippets import IN_CHROMIUM, LANGUAGES, Snippet, Walk, snippets_of

START = Path("docs/start.md")
PAGES = [
    Path("docs/concepts.md"),
    Path("docs/testing.md"),
    *sorted(path.relative_to(ROOT) for path in (ROOT / "docs" / "guides").glob("*.md")),
]
FILES = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
).stdout.splitlines()
JS_README = Path("clients/js/README.md")
READMES = [JS_README, Path("clients/python/README.md")]
MARKDOWN = sorted(path for path in map(Path, FILES) if path.suffix == ".md")
SECRET = "5ec2e7" * 12
SESSION = "7f3c1f6e-2f6b-4b0e-9a51-0d6f3c1d2e3f"


def snippets(path: Path) -> list[Snippet]:
    return snippets_of((ROOT / path).read_text())


# --- pages whose time stands still -----------------------------------------------------------------


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "secret"
    path.write_text(SECRET)
    return path


@pytest.fixture(scope="module")
def addresses(secret: Path) -> Iterator[dict[str, str]]:
    """What stands for the two servers that pages name: one for everybody, and one that knows the secret."""
    servers = [
        ServerProcess("--virtual-time=yes", *more, wait=False)
        for more in ((), (f"--jwt-secret-file={secret}",))
    ]
    for server in servers:
        server.wait_until_ready()
    open_to_all, locked = servers
    yield addresses_of(open_to_all) | {"127.0.0.1:8081": f"127.0.0.1:{locked.port}"}
    for server in servers:
        server.stop()


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_a_page_does_what_it_says(
    path: Path, addresses: dict[str, str], secret: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").symlink_to(secret)
    with Walk(tmp_path, addresses) as walk:
        walk.run(snippets(path))


@pytest.mark.parametrize("path", [START, *PAGES, *READMES], ids=str)
def test_every_block_is_of_a_kind_that_is_run_or_says_that_it_is_not(path: Path) -> None:
    for snippet in snippets(path):
        assert snippet.language in LANGUAGES, f"line {snippet.line}"
        assert path in (START, JS_README) or snippet.language not in IN_CHROMIUM, f"line {snippet.line}"


def test_an_example_that_is_not_true_is_noticed(tmp_path: Path) -> None:
    for page in (
        "```sh\nfalse\n```\n",
        "```sh\necho '{\"error\":{}}'\n```\n",
        '```sh\necho \'{"data": {"version": 2}}\'\n```\n```json\n{"data": {"version": 1}}\n```\n',
        "```sh\necho one\n```\n```text\ntwo\n```\n",
        "```python\n1 / 0\n```\n",
        '```python\nprint("one")\n```\n```text\ntwo\n```\n',
        '```js\nthrow new Error("no")\n```\n',
        '```js\nPromise.reject(new Error("no"))\n```\n',
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with Walk(folder, {}) as walk, pytest.raises(AssertionError, match="line"):
            walk.run(snippets_of(page))


def addresses_of(server: ServerProcess) -> dict[str, str]:
    return {f"{host}:8080": f"{host}:{server.port}" for host in ("localhost", "127.0.0.1")}


# --- the start -------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="module")
def own_pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder of one's own, and the address at which it is served."""
    folder = tmp_path_factory.mktemp("my-page")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.fixture(scope="module")
def started(own_pages: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that lets pages of one's own in, on which start.md has been done as far as its shell goes."""
    server = ServerProcess(env={"LOCKSTEP_ORIGINS": own_pages[1]})
    with Walk(tmp_path_factory.mktemp("start"), addresses_of(server), within_ms=30_000) as walk:
        walk.run(snippets(START))
    yield server
    server.stop()


def the_one(language: str, server: ServerProcess) -> str:
    (found,) = [each.text for each in snippets(START) if each.language == language]
    assert "http://127.0.0.1:8080" in found
    return found.replace("http://127.0.0.1:8080", server.url)


def state_of(server: ServerProcess) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.url}/v1/sessions/{SESSION}", timeout=20) as answer:
        state: dict[str, Any] = ujson.load(answer)["data"]
    return state


def press_and_see(page: Page, url: str, server: ServerProcess) -> None:
    """The clock of whose turn it is moves; a press ends that turn, and the other's moves."""
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    before = state_of(server)
    names = before["metadata"]["names"]
    active, other = sorted(before["participants"], key=lambda each: not each["is_active"])
    running, waiting = (page.get_by_text(names[each["participant_id"]]) for each in (active, other))
    expect(running).to_have_text(re.compile(r"[0-3]:\d\d\.\d"))
    expect(running).not_to_have_text(running.inner_text())
    shown = waiting.inner_text()
    page.get_by_role("button", name="Press").click()
    expect(waiting).not_to_have_text(shown)
    after = state_of(server)
    assert after["version"] == before["version"] + 1
    assert after["active_participant_id"] == other["participant_id"]
    assert complaints == []


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


def test_the_page_of_the_start_shows_clocks_and_presses(
    started: ServerProcess, own_pages: tuple[Path, str], page: Page
) -> None:
    folder, url = own_pages
    (folder / "plain.html").write_text(the_one("html", started))
    press_and_see(page, f"{url}/plain.html", started)


def build_react_page(component: str, file: Path, to: Path) -> None:
    """A page in StrictMode, of the component that stands in `file`."""
    (file.parent / "main.jsx").write_text(
        'import { StrictMode } from "react"; import { createRoot } from "react-dom/client";\n'
        f'import * as page from "./{file.name}"; const App = page.default ?? page.Game;\n'
        f'createRoot(document.getElementById("root")).render(<StrictMode>{component}</StrictMode>);\n'
    )
    modules = file.parent / "node_modules"
    modules.mkdir()
    (modules / "lockstep-client").symlink_to(JS_CLIENT)
    to.with_suffix(".js").write_text(bundle(file.parent / "main.jsx"))
    to.write_text(f'<div id="root"></div><script src="{to.stem}.js"></script>')


def test_the_react_page_of_the_start_shows_clocks_and_presses(
    started: ServerProcess, own_pages: tuple[Path, str], page: Page, tmp_path: Path
) -> None:
    folder, url = own_pages
    (tmp_path / "App.jsx").write_text(the_one("jsx", started))
    build_react_page("<App />", tmp_path / "App.jsx", folder / "start.html")
    press_and_see(page, f"{url}/start.html", started)


def test_the_component_of_the_clients_page_shows_clocks_and_presses(
    started: ServerProcess, own_pages: tuple[Path, str], page: Page, tmp_path: Path
) -> None:
    folder, url = own_pages
    (component,) = [each.text for each in snippets(JS_README) if each.language == "tsx"]
    assert "https://clocks.example.org/" in component
    (tmp_path / "Game.tsx").write_text(component.replace("https://clocks.example.org/", started.url))
    build_react_page(f'<App sessionId="{SESSION}" />', tmp_path / "Game.tsx", folder / "client.html")
    before = state_of(started)
    page.goto(f"{url}/client.html")
    expect(page.locator("output")).to_have_text([re.compile(r"[0-3]:\d\d")] * 2)
    waiting = page.locator("output.waiting")
    expect(waiting).to_have_count(1)
    waiting.evaluate("element => { element.id = 'waiting'; }")
    page.get_by_role("button", name="End turn").click()
    expect(page.locator("#waiting")).to_have_class("running")
    assert state_of(started)["version"] == before["version"] + 1


@pytest.mark.parametrize("path", READMES, ids=str)
def test_the_page_of_a_client_does_what_it_says_once_the_start_is_done(
    path: Path, started: ServerProcess, tmp_path: Path
) -> None:
    with Walk(tmp_path, addresses_of(started), within_ms=30_000) as walk:
        walk.run(snippets(path))


@pytest.mark.long
def test_make_docs_writes_the_reference_of_both_clients() -> None:
    """What it needs is there: it was installed for this test."""
    installed = ["-o", ".venv/.tested", "-o", "clients/js/node_modules/.package-lock.json"]
    done = subprocess.run(
        ["make", *installed, "docs"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for path, told in (
        ("python/lockstep_client.html", "mint_token"),
        ("python/lockstep_client/clocks.html", "session_clock"),
        ("js/classes/lockstep-client.Lockstep.html", "subscribe"),
        ("js/functions/lockstep-client_react.useClock.html", "useClock"),
    ):
        assert told in (ROOT / "build" / "docs" / path).read_text(), path


# --- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MARKDOWN, ids=str)
def test_every_link_leads_somewhere(path: Path) -> None:
    assert list(broken_links(ROOT / path)) == []


def test_every_page_of_docs_is_in_the_list_of_them() -> None:
    listed = (ROOT / "docs" / "README.md").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"]({name})" in listed, name


def test_every_file_that_the_architecture_names_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([\w/.*-]+\.(?:py|js|lua|c))\b", text))
    paths = [f"/{path}" for path in FILES]
    assert len(named) > 100
    assert {name for name in named if not fnmatch.filter(paths, f"*/{name}")} == set()


def test_a_link_that_leads_nowhere_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Who is `there`?\n\n## A, B\n\n## A, B\n\n"
        "[a](#who-is-there) [b](#a-b) [c](#a-b-1) [d](#a-b-2) [e](page.md#a-b) [f](other.md)\n"
        "[g](https://example.org/#x) `[h](nowhere)`\n\n```\n# No heading\n[i](nowhere)\n```\n"
    )
    assert anchors_of(page) == {"who-is-there", "a-b", "a-b-1"}
    assert list(broken_links(page)) == ["#a-b-2", "other.md"]
