"""Tabs of a browser in which clients/js runs, and servers that do not speak protocol v2."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser

from tests.support.cable import Cable

# What the tests need in a tab. `follow` makes a client of a new session, or of the one given, and records
# what happens; timers and sockets are counted, messages kept. The sockets are real: `say` adds a message to
# what one heard. `rest` asks the server.
TOOLS = """
window.sockets = [], window.sent = [], window.received = [];
window.WebSocket = class extends WebSocket {
    constructor(...args) {
        super(...args);
        sockets.push(this);
        const keep = ({ data, isTrusted }) => isTrusted && received.push(JSON.parse(data));
        this.addEventListener("message", keep);
    }
    send(data) { sent.push(JSON.parse(data)); super.send(data); }
};
window.timers = new Set();
for (const [set, clear] of [["setTimeout", "clearTimeout"], ["setInterval", "clearInterval"]]) {
    const native = { set: window[set].bind(window), clear: window[clear].bind(window) };
    window[set] = (run, ms) => {
        const id = native.set(() => { if (set === "setTimeout") timers.delete(id); run(); }, ms);
        timers.add(id);
        return id;
    };
    window[clear] = (id) => { timers.delete(id); native.clear(id); };
}
window.follow = async (options, url = location.origin + "/ws", sessionId = crypto.randomUUID()) => {
    const { Lockstep } = await import("/client/index.js");
    window.link = new Lockstep(url, sessionId, options);
    window.log = [];
    link.addEventListener("status", ({ detail }) => log.push(detail));
    for (const type of ["state", "missing", "deleted", "error", "message", "presence"]) {
        link.addEventListener(type, ({ detail }) => log.push({ ...detail, event: type }));
    }
    return link;
};
window.until = async (holds) => {
    for (const begin = performance.now(); performance.now() - begin < 20_000; ) {
        if (holds()) return;
        await new Promise(requestAnimationFrame);
    }
    throw new Error(`never: ${holds} ${JSON.stringify({ status: link.status, log })}`);
};
window.rest = async (method, path, body) => {
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch("/v1/sessions" + path, { method, headers, body: JSON.stringify(body) });
    const position = JSON.parse(answer.headers.get("ETag"));
    return { status: answer.status, position, ...(await answer.json().catch(() => ({}))) };
};
window.statuses = () => log.flatMap(({ status }) => status ?? []);
window.say = (data, socket = sockets.at(-1)) => socket.dispatchEvent(new MessageEvent("message", { data }));
window.measured = () => link.status === "online" && link.time.errorMs < Infinity;
"""


class Tab:
    """A tab with the tools, whose uncaught errors are kept."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.page = browser.new_context().new_page()
        self.uncaught: list[str] = []
        self.tolerated: set[str] = set()
        self.page.on("pageerror", lambda error: self.uncaught.append(str(error)))
        self.page.add_init_script(TOOLS)
        self.url = url
        self.page.goto(url)

    def run(self, body: str, *args: Any) -> Any:
        """Run it as the body of an async function whose arguments are `args`."""
        return self.page.evaluate("async (args) => {" + body + "}", list(args))


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Tab]:
    """A tab in which nothing may fail that no test has tolerated."""
    tab = Tab(browser, url)
    yield tab
    tab.page.context.close()
    assert set(tab.uncaught) <= tab.tolerated


@contextmanager
def older(port: int) -> Iterator[Cable]:
    """The way to a server as one of before protocol v2.

    It never learns of what it would not have known: the handshake is what the two have not in common.
    """
    cable = Cable(port)
    cable.on_request(lambda data: re.sub(rb"lockstep\.v2\.json, *", b"", data))
    yield cable
    cable.close()
