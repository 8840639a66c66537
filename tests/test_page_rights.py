"""The page in headless Chromium: what it offers to whom, and the links that it shares."""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.support.node import run_js
from tests.support.pages import SMALL_PHONE, Tabs, barriers, clean_tabs
from tests.support.processes import ROOT, ServerProcess, running
from tests.support.profiles import Profiles
from tests.support.tokens import SECRET, token

ANN, BEN = (str(uuid.uuid4()) for _ in range(2))


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "secret"
    path.write_text(SECRET)
    return path


@pytest.fixture(scope="module")
def guarded(secret: Path) -> Iterator[ServerProcess]:
    """A server with keys, which lets anybody watch."""
    options = (f"--jwt-secret-file={secret}", "--anonymous=view", "--log-level=warning")
    with running(ServerProcess(*options)) as server:
        yield server


@pytest.fixture
def tabs(profiles: Profiles, guarded: ServerProcess) -> Iterator[Tabs]:
    yield from clean_tabs(profiles, guarded.url)


@pytest.fixture
def open_tabs(profiles: Profiles, server_process: ServerProcess) -> Iterator[Tabs]:
    """On a server without keys."""
    yield from clean_tabs(profiles, server_process.url)


def created(tabs: Tabs) -> str:
    """The id of a game of Ann and Ben."""
    body: dict[str, Any] = {
        "sync_mode": "per_participant",
        "participants": [{"participant_id": each, "total_time_ms": 3_600_000} for each in (ANN, BEN)],
        "metadata": {"title": "A game", "names": {ANN: "Ann", BEN: "Ben"}},
    }
    headers = {"Authorization": f"Bearer {token()}"}
    answer = httpx.post(f"{tabs.url}/v1/sessions", json=body, headers=headers)
    return str(answer.json()["data"]["session_id"])


def open_with(tabs: Tabs, session_id: str, fragment: str, **options: object) -> Page:
    page = tabs.open(f"{tabs.url}/?session={session_id}#{fragment}", **options)
    expect(page.locator("#session")).to_be_visible()
    return page


def open_as(tabs: Tabs, session_id: str, scope: str, **claims: Any) -> Page:
    return open_with(tabs, session_id, f"token={token(scope, **claims)}")


def offered(page: Page) -> list[str]:
    """The names of what can be pressed of the clock."""
    buttons = page.locator("#session").get_by_role("button", disabled=False).all()
    return [str(each.get_attribute("aria-label") or each.text_content()).strip() for each in buttons]


def kinds(page: Page) -> list[str]:
    """For whom the dialog has links."""
    return page.locator("#share-kind option").all_text_contents()


def link_for(page: Page, kind: str) -> str:
    page.get_by_label("Who opens it").select_option(kind)
    return page.get_by_label("Link to this clock").input_value()


def status(page: Page) -> Any:
    return expect(page.locator("#status"))


# ---- What is offered ----


def test_whoever_watches_is_offered_nothing_to_press(tabs: Tabs) -> None:
    session_id = created(tabs)
    host = open_as(tabs, session_id, "control")
    # Without a token, too, which only the server can tell from a server without keys.
    for page in (open_as(tabs, session_id, "view"), open_with(tabs, session_id, "")):
        expect(page.locator("#watching")).to_have_text("You are watching.")
        assert offered(page) == []
        for key in (" ", "p", "f", "f"):
            page.keyboard.press(key)
        expect(page.locator("#toast")).to_be_hidden()
    host.keyboard.press(" ")
    status(host).to_have_text("Ann\N{RIGHT SINGLE QUOTATION MARK}s turn")
    status(page).to_have_text("Ann\N{RIGHT SINGLE QUOTATION MARK}s turn")
    assert offered(page) == []
    expect(host.locator("#version")).to_have_text("v2")


def test_a_player_is_offered_its_own_turn_and_nothing_else(tabs: Tabs) -> None:
    session_id = created(tabs)
    host = open_as(tabs, session_id, "control")
    # A subject is a participant in whatever case its token has it.
    ann, ben = (open_as(tabs, session_id, "play", sub=each) for each in (ANN.upper(), BEN))
    for page, name in ((ann, "Ann"), (ben, "Ben")):
        expect(page.locator("#watching")).to_have_text(f"You are {name}.")
        expect(page.locator("#primary")).to_have_text("Not started yet Space")
        assert offered(page) == []
    host.click("#primary")
    expect(ann.locator("#primary")).to_have_text("End turn Space")
    assert offered(ann) == ["Ann: End turn", "End turn Space"]
    expect(ben.locator("#primary-text")).to_have_text("Ann\N{RIGHT SINGLE QUOTATION MARK}s turn")
    assert offered(ben) == []
    assert barriers(ben) == []
    ben.keyboard.press(" ")
    ann.keyboard.press("p")
    ann.keyboard.press(" ")
    expect(ben.locator("#primary")).to_have_text("End turn Space")
    expect(ann.locator("#primary")).to_be_disabled()
    ben.get_by_role("button", name="Ben: End turn").click()
    status(host).to_have_text("Ann\N{RIGHT SINGLE QUOTATION MARK}s turn")
    expect(host.locator("#version")).to_have_text("v4")
    host.click("#pause")
    expect(ann.locator("#primary-text")).to_have_text("Paused")
    assert offered(ann) == []


def test_a_host_is_offered_all_of_its_clock_and_no_other_clock(tabs: Tabs) -> None:
    session_id = created(tabs)
    host = open_as(tabs, session_id, "control")
    assert offered(host) == ["Ann: begins", "Ben: begins", "Start Space"]
    host.click("#primary")
    expect(host.locator("#pause")).to_be_visible()
    wanted = ["Ann: End turn", "Ben: gets the turn", "Pause P", "End turn Space", "Finish F"]
    assert offered(host) == wanted
    admin = open_as(tabs, session_id, "admin")
    expect(admin.locator("#pause")).to_be_visible()
    assert offered(admin) == wanted
    for _ in range(2):
        host.click("#finish")
    for page in (host, admin):
        status(page).to_have_text("Finished")
    expect(host.locator("#again")).to_be_hidden()
    admin.get_by_role("link", name="New clock").click()
    expect(admin.locator("#home")).to_be_visible()
    assert "#token=" in admin.url


@pytest.mark.parametrize("fragment", ["scope=view", ""], ids=["asked", "by none"])
def test_a_start_page_that_may_not_make_clocks_says_so(tabs: Tabs, open_tabs: Tabs, fragment: str) -> None:
    where = open_tabs if fragment.startswith("scope") else tabs
    page = where.open(f"{where.url}/#{fragment}")
    expect(page.locator("#no-making")).to_have_text("Your link does not let you make clocks.")
    page.get_by_text("Your own names").click()
    assert page.locator("#home").get_by_role("button", disabled=False).all() == []
    if fragment == "scope=view":
        assert barriers(page) == []


# ---- Links to share ----


def test_the_links_of_a_server_without_keys_ask_the_page_for_less(open_tabs: Tabs) -> None:
    page = open_tabs.start("chess")
    page.click("#share")
    assert kinds(page) == ["Everybody", "Somebody who watches", "White", "Black"]
    everybody, watch, white = (
        link_for(page, kind) for kind in ("Everybody", "Somebody who watches", "White")
    )
    assert everybody == page.url
    # Nothing but the page keeps to it, and the dialog says so.
    expect(page.locator("#share-text")).to_contain_text("This server has no keys")
    watching = open_tabs.open(watch)
    expect(watching.locator("#watching")).to_have_text("You are watching.")
    assert offered(watching) == []
    player = open_tabs.open(white)
    expect(player.locator("#primary")).to_have_text("End turn Space")
    assert offered(player) == ["White: End turn", "End turn Space"]
    # What a link takes away it does not hand on again.
    player.click("#share")
    assert kinds(player) == ["You, on another screen"]
    assert player.get_by_label("Link to this clock").input_value() == white


def test_a_token_can_be_handed_on_and_no_other_made_of_it(tabs: Tabs) -> None:
    session_id = created(tabs)
    host = open_as(tabs, session_id, "control")
    host.click("#share")
    # This server lets those watch, too, who have no token.
    expect(host.locator("#share-kind option")).to_have_text(["Somebody who watches", "A host, as you"])
    assert link_for(host, "Somebody who watches") == f"{tabs.url}/?session={session_id}"
    assert link_for(host, "A host, as you") == host.url
    ann = open_as(tabs, session_id, "play", sub=ANN)
    ann.click("#share")
    expect(ann.locator("#share-kind option")).to_have_text(["Somebody who watches", "You, on another screen"])
    assert link_for(ann, "You, on another screen") == ann.url


def test_the_hosts_link_that_lockstep_prints_hands_on_the_others(tabs: Tabs, secret: Path) -> None:
    session_id = created(tabs)
    options = [f"--session={session_id.upper()}", f"--url={tabs.url}/", f"--jwt-secret-file={secret}"]
    done = subprocess.run(
        [sys.executable, "server.py", "links", *options, "--aud=clocks"],
        cwd=ROOT, env={}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    lines = [line.strip() for line in done.stdout.splitlines()]
    printed = dict(zip(lines[::2], lines[1::2], strict=True))
    assert list(printed) == ["host", "watching", "Ann", "Ben"]
    host = tabs.open(printed["host"])
    host.click("#primary")
    status(host).to_have_text("Ann\N{RIGHT SINGLE QUOTATION MARK}s turn")
    host.click("#share")
    assert kinds(host) == ["Somebody who watches", "Ann", "Ben", "A host, as you"]
    for kind, name in (("Somebody who watches", "watching"), ("Ann", "Ann"), ("Ben", "Ben")):
        assert link_for(host, kind) == printed[name]
    ann, watching = (tabs.open(printed[name]) for name in ("Ann", "watching"))
    expect(ann.locator("#primary")).to_have_text("End turn Space")
    assert offered(ann) == ["Ann: End turn", "End turn Space"]
    expect(watching.locator("#watching")).to_have_text("You are watching.")
    ann.click("#share")
    expect(ann.locator("#share-kind option").last).to_have_text("You, on another screen")
    assert "Ben" not in kinds(ann)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--session=half"], "--session: 'half' is no session id (a UUID)"),
        ([f"--session={ANN}", "--url=ftp://x"], "is not http:// or https://"),
        ([f"--session={ANN}", "--url=http://127.0.0.1:1"], "gives no session: "),
        ([f"--session={ANN}"], "answers 404: it has no such session"),
        ([f"--session={ANN}", "other"], "answers 401: it has another key than these links"),
    ],
    ids=["id", "scheme", "nobody", "no session", "another key"],
)
def test_links_that_would_open_nothing_are_not_printed(
    guarded: ServerProcess, secret: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    if options[-1] == "other":
        secret = tmp_path / "other"
        secret.write_text("another secret of more than thirty-two bytes, for tests")
        options = options[:-1]
    url = [] if any(each.startswith("--url") for each in options) else [f"--url={guarded.url}"]
    done = subprocess.run(
        [sys.executable, "server.py", "links", *options, *url, f"--jwt-secret-file={secret}"],
        cwd=ROOT, env={}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert said in done.stderr


def test_the_qr_code_is_that_of_the_link_shown(open_tabs: Tabs) -> None:
    page = open_tabs.create("quiz")
    page.click("#share")
    drawn = set()
    for kind in ("Everybody", "Team C"):
        link = link_for(page, kind)
        code = page.evaluate(
            """async (link) => {
                const { size, modules } = (await import("/qr.js")).qrCode(link);
                const path = document.querySelector("#share-qr path").getAttribute("d");
                const places = [...path.matchAll(/M(\\d+) (\\d+)h1v1h-1z/g)]
                    .map(([, x, y]) => (y - 4) * size + (x - 4));
                const dark = [...modules.keys()].filter((at) => modules[at]);
                return [JSON.stringify(places), JSON.stringify(dark)];
            }""",
            link,
        )
        assert code[0] == code[1]
        drawn.add(code[0])
        expect(page.get_by_role("img", name="QR code of this link")).to_be_visible()
    assert len(drawn) == 2


def test_a_link_that_only_this_machine_can_open_says_so(open_tabs: Tabs) -> None:
    page = open_tabs.create("exam")
    page.click("#share")
    expect(page.locator("#share-loopback")).to_contain_text("Only this machine can open it.")
    page.set_viewport_size(SMALL_PHONE)  # type: ignore[arg-type]
    assert page.evaluate("document.querySelector('#share-dialog').scrollWidth <= innerWidth")
    # The same files at another name, where no server answers: the dialog alone.
    away = open_tabs.browser.new_context().new_page()
    away.route("**/*", lambda route: route.fulfill(response=away.request.get(
        route.request.url.replace("http://clocks.example", open_tabs.url))))  # fmt: skip
    away.goto("http://clocks.example/")
    access = {"hasKeys": False, "mayControl": True, "scope": "admin"}
    away.evaluate("async (access) => (await import('/share.js')).share({ participants: [] }, access)", access)
    expect(away.locator("#share-dialog")).to_be_visible()
    expect(away.locator("#share-loopback")).to_be_hidden()


def test_names_that_a_session_brings_stay_text_in_the_dialog(open_tabs: Tabs) -> None:
    name = "<img src=x onerror=alert(1)>"
    body = {"sync_mode": "per_cycle", "time_per_cycle_ms": 9_000}
    page = open_tabs.open_session(
        body | {"participants": [{"participant_id": ANN}], "metadata": {"names": {ANN: name}}}
    )
    page.click("#share")
    assert kinds(page)[2] == name
    link_for(page, name)
    expect(page.locator("#share-text")).to_contain_text(name)
    assert json.loads(page.evaluate("JSON.stringify(document.querySelectorAll('img[src=x]').length)")) == 0


# ---- What the client knows of it ----


def access(url: str, *tokens: str) -> Any:
    """What a client with this token, or none, says that it may do: before it is connected, and then."""
    return run_js(
        """const [url, token] = args;
        const lockstep = new client.Lockstep(url, { token });
        const seen = [lockstep.access];
        await new Promise((done) => {
            lockstep.addEventListener("status", ({ detail: { status } }) => status === "online" && done());
            lockstep.connect();
        });
        seen.push(lockstep.access);
        lockstep.close();
        return seen;""",
        url,
        *tokens,
    )


def test_the_client_knows_what_it_may_do(guarded: ServerProcess, server_process: ServerProcess) -> None:
    assert access(guarded.url, token("play", sub=ANN)) == [None, {"scope": "play", "subject": ANN}]
    assert access(guarded.url) == [None, {"scope": "view"}]
    assert access(server_process.url) == [None, {}]


def test_the_client_knows_what_it_may_do_by_its_next_token() -> None:
    seen = run_js(
        """const lasting = (seconds) => {
            const exp = Math.ceil(Date.now() / 1000) + seconds;
            return ["", JSON.stringify({ exp }), ""].map(btoa).join(".");
        };
        const tokens = [lasting(2), lasting(600)];
        class Socket {
            protocol = "lockstep.v2.json";
            readyState = 1;
            constructor() {
                queueMicrotask(() => this.say({ type: "WELCOME", scope: "view", timestamp: Date.now() }));
            }
            say(message) {
                this.onmessage({ data: JSON.stringify(message) });
            }
            send(text) {
                const { type, id } = JSON.parse(text);
                if (type !== "REAUTH") return;
                this.say({ type: "REAUTHENTICATED", id, scope: "control", subject: "anna" });
                done();
            }
            close() {}
        }
        let done;
        const isDone = new Promise((resolve) => (done = resolve));
        const options = { token: () => tokens.shift(), WebSocket: Socket };
        const lockstep = new client.Lockstep("http://clocks.example", options);
        lockstep.connect();
        await isDone;
        const { access } = lockstep;
        lockstep.close();
        return access;"""
    )
    assert seen == {"scope": "control", "subject": "anna"}
