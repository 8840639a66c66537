"""The npm package in somebody's own project: TypeScript, vite and React, in a browser as people have it."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import BrowserContext, Page, WebSocket, expect

from tests.support.browser import everyday_chromium
from tests.support.bundles import JS_CLIENT
from tests.support.packages import Site, install, pack, run
from tests.support.processes import ROOT, ServerProcess, wait_until
from tests.support.tokens import SECRET
from tests.support.tokens import token as mint

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In an empty folder: npm pack, npm install."""
    folder = tmp_path_factory.mktemp("react")
    project = folder / "project"
    shutil.copytree(ROOT / "tests/support/react_project", project)
    readme = (JS_CLIENT / "README.md").read_text()
    (project / "src/readme.tsx").write_text(readme.split("```tsx\n")[1].split("```")[0])
    packages = ("react", "react-dom", "@types/react", "@types/react-dom", "typescript", "vite")
    install(project, pack(folder), *packages)
    return project


@dataclass
class Stage:
    """The built page at an address of its own, a server elsewhere that takes it, and a browser."""

    site: Site
    server: ServerProcess
    context: BrowserContext

    def create(self, **more: Any) -> str:
        return self.context.request.post(
            f"{self.server.url}/v1/sessions",
            data={
                "sync_mode": "per_participant",
                "presence": True,
                "participants": [
                    {"participant_id": str(uuid4()), "total_time_ms": 600_000} for _ in range(2)
                ],
                **more,
            },
            headers=self._admin,
        ).json()["data"]["session_id"]

    def command(self, session_id: str, name: str) -> None:
        url = f"{self.server.url}/v1/sessions/{session_id}/{name}"
        assert self.context.request.post(url, headers=self._admin).ok

    def connections(self, session_id: str) -> int:
        """How many the server has of the one who looks at it."""
        url = f"{self.server.url}/v1/sessions/{session_id}/presence"
        present = self.context.request.get(url, headers=self._admin).json()["data"]["present"]
        return sum(each["connections"] for each in present)

    @property
    def _admin(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {mint('admin')}"}

    def open(self, session_id: str, ttl_s: float = 600) -> "Tab":
        tab = Tab(self.context.new_page())
        tab.page.goto(f"{self.site.url}/?server={self.server.url}&session={session_id}&ttl_s={ttl_s:g}")
        return tab


class Tab:
    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.sockets: list[WebSocket] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("websocket", lambda socket: self.sockets.append(socket))

    @property
    def clocks(self) -> list[str]:
        return self.page.locator("output").all_inner_texts()

    def expect_current(self, version: int | None = None) -> None:
        expect(self.page.locator("section[data-current=true]")).to_be_visible(timeout=20_000)
        if version is not None:
            expect(self.page.locator("section")).to_have_attribute("data-version", str(version))


def seconds(text: str) -> float:
    minutes, rest = text.split(":")
    return int(minutes) * 60 + float(rest)


@pytest.fixture(scope="module")
def stage(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    run(project, "npx", "vite", "build", "--logLevel=warn")
    secret = tmp_path_factory.mktemp("keys") / "secret"
    secret.write_text(SECRET)
    site = Site(project / "dist", lambda ttl_s: mint("control", ttl_s=ttl_s, sub="anna"))
    server = ServerProcess(
        f"--jwt-secret-file={secret}", f"--origins={site.url}", "--jwt-audience=clocks", "--log-level=warning"
    )
    with everyday_chromium() as context:
        yield Stage(site, server, context)
    server.stop()
    site.close()


@pytest.mark.parametrize("resolution", ["bundler", "nodenext"])
def test_a_strict_project_compiles_with_its_types(project: Path, resolution: str) -> None:
    module = "esnext" if resolution == "bundler" else "nodenext"
    run(project, "npx", "tsc", "--module", module, "--moduleResolution", resolution)


def test_no_signature_has_any(project: Path) -> None:
    found = [
        f"{path.name}: {line.strip()}"
        for path in (project / "node_modules/lockstep-client/types").glob("*.d.ts")
        for line in re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL).splitlines()
        if re.search(r"\bany\b", line)
    ]
    assert found == []


def test_a_press_in_one_tab_is_seen_in_another(stage: Stage) -> None:
    session_id = stage.create()
    stage.command(session_id, "start")
    one, other = stage.open(session_id), stage.open(session_id)
    for tab in (one, other):
        tab.expect_current(2)
        expect(tab.page.locator("#here")).to_have_text("anna")
    expect(other.page.locator("output").nth(0)).to_have_attribute("data-look", "running")
    one.page.bring_to_front()
    one.page.click("button")
    for tab in (one, other):
        tab.expect_current(3)
        expect(tab.page.locator("output").nth(1)).to_have_attribute("data-look", "running")
        assert (tab.complaints, len(tab.sockets)) == ([], 1)


def test_a_token_that_runs_out_is_renewed_and_the_socket_stays(stage: Stage) -> None:
    session_id = stage.create()
    minted = stage.site.minted
    tab = stage.open(session_id, ttl_s=4)
    tab.expect_current(1)
    wait_until(lambda: stage.site.minted >= minted + 4 or tab.page.wait_for_timeout(50), 60)
    stage.command(session_id, "start")
    tab.expect_current(2)
    assert (tab.complaints, len(tab.sockets)) == ([], 1)


def test_offline_is_shown_and_what_was_missed_comes_when_online_again(stage: Stage) -> None:
    session_id = stage.create()
    tab = stage.open(session_id)
    tab.expect_current(1)
    stage.context.set_offline(True)
    expect(tab.page.locator("section[data-current=false]")).to_be_visible(timeout=20_000)
    stage.command(session_id, "start")
    stage.context.set_offline(False)
    tab.expect_current(2)
    assert tab.complaints == []
    assert sum(not socket.is_closed() for socket in tab.sockets) == 1


def test_a_tab_that_was_in_the_background_is_right_when_it_is_looked_at_again(stage: Stage) -> None:
    session_id = stage.create()
    stage.command(session_id, "start")
    tab = stage.open(session_id)
    tab.expect_current(2)
    front = stage.context.new_page()
    front.bring_to_front()
    wait_until(lambda: tab.page.evaluate("document.visibilityState") == "hidden", 10)
    hidden = tab.clocks[0]
    front.wait_for_timeout(3000)
    assert tab.clocks[0] == hidden, "a clock was drawn that nobody could see"
    # What the first frame after it shows is what the page was painted with.
    tab.page.evaluate(
        """() => document.addEventListener("visibilitychange", () => requestAnimationFrame(() => {
            window.first = document.querySelector("output").textContent;
        }), { once: true })"""
    )
    tab.page.bring_to_front()
    first = wait_until(lambda: tab.page.evaluate("window.first"), 10)
    front.close()
    assert seconds(hidden) - seconds(first) >= 2


def test_a_page_that_was_left_and_come_back_to_goes_on_with_one_socket(stage: Stage) -> None:
    session_id = stage.create()
    tab = stage.open(session_id)
    tab.expect_current(1)
    tab.page.evaluate("addEventListener('pageshow', ({ persisted }) => (window.persisted = persisted))")
    tab.page.goto(f"{stage.site.url}/favicon.ico")
    wait_until(lambda: stage.connections(session_id) == 0, what="no connection of a page that was left")
    stage.command(session_id, "start")
    tab.page.evaluate("void setTimeout(() => history.back())")
    tab.expect_current(2)
    expect(tab.page.locator("output").nth(0)).to_have_attribute("data-look", "running")
    assert tab.page.evaluate("window.persisted"), "the browser has loaded the page anew"
    assert (tab.complaints, stage.connections(session_id)) == ([], 1)
    first = seconds(tab.clocks[0])
    wait_until(lambda: seconds(tab.clocks[0]) < first, what="a clock that goes on")
