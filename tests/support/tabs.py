"""Where clients/js runs in the tests: in Node, and in tabs of a browser for what only one has."""

import json
import re
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from playwright.sync_api import Browser, BrowserContext

from tests.support.cable import Cable
from tests.support.node import NODE, SOURCES

# What the tests need there. `follow` makes a client that follows a new session, or the one given, and records
# what happens; sockets and the client's timers and listeners are counted, messages kept. The sockets are
# real: `say` adds a message to what one heard. `rest` asks the server. ORIGIN and INDEX are where the server
# and the client's modules are.
TOOLS = """
globalThis.sockets = [], globalThis.sent = [], globalThis.received = [], globalThis.isSaying = false;
if (globalThis.WebSocket) globalThis.WebSocket = class extends WebSocket {
    constructor(...args) {
        super(...args);
        sockets.push(this);
        this.addEventListener("message", ({ data }) => isSaying || received.push(JSON.parse(data)));
    }
    send(data) { sent.push(JSON.parse(data)); super.send(data); }
};
const realNowMs = performance.now.bind(performance), realTimeout = setTimeout.bind(globalThis);
globalThis.turn = () => new Promise((resolve) => {
    globalThis.document ? requestAnimationFrame(resolve) : realTimeout(resolve, 2);
});
globalThis.timers = new Set();
for (const [set, clear] of [["setTimeout", "clearTimeout"], ["setInterval", "clearInterval"]]) {
    const native = { set: globalThis[set].bind(globalThis), clear: globalThis[clear].bind(globalThis) };
    globalThis[set] = (run, ms, ...args) => {
        const id = native.set(() => { if (set === "setTimeout") timers.delete(id); run(...args); }, ms);
        if (new Error().stack.includes(INDEX.replace(/index.js$/, ""))) timers.add(id);
        return id;
    };
    globalThis[clear] = (id) => { timers.delete(id); native.clear(id); };
}
globalThis.listening = new Set();
for (const target of [globalThis, globalThis.document]) {
    if (!target?.addEventListener) continue;
    const native = target.addEventListener.bind(target);
    target.addEventListener = (type, listener, options) => {
        if (options?.signal) {
            listening.add(type);
            options.signal.addEventListener("abort", () => listening.delete(type));
        }
        return native(type, listener, options);
    };
}
globalThis.log = [];
globalThis.listenTo = (target, of, types) => {
    const keep = ({ type, detail }) => log.push({ of, type, ...detail });
    for (const type of types) target.addEventListener(type, keep);
};
globalThis.OF_SESSION = ["state", "missing", "deleted", "error", "message", "presence", "status"];
globalThis.server = async (options, url = ORIGIN) => {
    const { Lockstep } = await import(INDEX);
    globalThis.lockstep = new Lockstep(url, options);
    listenTo(lockstep, "lockstep", ["status", "error"]);
    return lockstep;
};
globalThis.subscribe = (sessionId = crypto.randomUUID(), of = "session") => {
    const session = lockstep.subscribe(sessionId);
    listenTo(session, of, OF_SESSION);
    return session;
};
globalThis.follow = async (options, sessionId, url) => {
    await server(options, url);
    return globalThis.session = subscribe(sessionId);
};
globalThis.until = async (holds) => {
    for (const begin = realNowMs(); realNowMs() - begin < 20_000; await turn()) {
        const held = holds();
        if (held) return held;
    }
    throw new Error(`never: ${holds} ${JSON.stringify({ status: lockstep.status, log })}`);
};
globalThis.rest = async (method, path, body) => {
    const headers = { "Content-Type": "application/json", ...globalThis.restHeaders };
    const init = { method, headers, body: JSON.stringify(body) };
    const answer = await fetch(ORIGIN + "/v1/sessions" + path, init);
    const position = JSON.parse(answer.headers.get("ETag"));
    return { status: answer.status, position, ...(await answer.json().catch(() => ({}))) };
};
globalThis.logged = (type, of = "session") => log.filter((each) => each.of === of && each.type === type);
globalThis.statuses = (of = "lockstep") => logged("status", of).map(({ status }) => status);
globalThis.events = () => logged("state").flatMap(({ events }) => events);
globalThis.say = (message, socket = sockets.at(-1)) => {
    const data = typeof message === "string" ? message : JSON.stringify(message);
    isSaying = true;
    socket.dispatchEvent(new MessageEvent("message", { data }));
    isSaying = false;
};
globalThis.drop = (code = 4000) => sockets.at(-1).close(code);
globalThis.online = () => lockstep.status === "online" && lockstep.time.errorMs < Infinity;
globalThis.current = () => session.isCurrent && online();
globalThis.left = () => [timers.size, listening.size];
"""

_NODE_TAB = """
import { writeSync } from "node:fs";
import { createInterface } from "node:readline";
const [ORIGIN, INDEX] = process.argv.slice(1);
Object.assign(globalThis, { ORIGIN, INDEX });
{TOOLS}
const uncaught = [];
process.on("uncaughtException", (error) => uncaught.push(String(error?.message ?? error)));
process.on("unhandledRejection", (error) => uncaught.push("unhandled: " + String(error?.message ?? error)));
const tell = (what) => writeSync(1, JSON.stringify(what) + "\\n");
process.on("exit", () => tell({ uncaught }));
const AsyncFunction = (async () => {}).constructor;
for await (const line of createInterface({ input: process.stdin })) {
    const [body, args] = JSON.parse(line);
    try {
        tell({ returned: await new AsyncFunction("args", body)(args) });
    } catch (error) {
        tell({ thrown: String(error?.stack ?? error) });
    }
}
globalThis.lockstep?.close(); // and with it everything ends
"""


class NodeTab:
    """A Node process with the tools."""

    def __init__(self, url: str, *flags: str) -> None:
        """`flags` are Node's."""
        self.url = url
        self.tolerated: set[str] = set()
        source = _NODE_TAB.replace("{TOOLS}", TOOLS)
        index = (SOURCES / "index.js").as_uri()
        self._process = subprocess.Popen(
            [str(NODE), *flags, "--input-type=module", "--eval", source, url, index],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, body: str, *args: Any) -> Any:
        """Run it as the body of an async function whose arguments are `args`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([body, args]) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if "thrown" in answer:
            raise AssertionError(answer["thrown"])
        return answer.get("returned")

    def _read(self) -> Any:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], 60)[0]:
            raise AssertionError("Node says nothing")
        return json.loads(self._process.stdout.readline())

    def end(self) -> list[str]:
        """What was uncaught. Node ends by itself when the client is closed: nothing keeps it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        uncaught: list[str] = self._read()["uncaught"]
        assert self._process.wait(10) == 0
        return uncaught

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


@contextmanager
def in_node(url: str, *flags: str) -> Iterator[NodeTab]:
    """A Node in which nothing may fail that no test has tolerated."""
    tab = NodeTab(url, *flags)
    try:
        yield tab
        assert set(tab.end()) <= tab.tolerated
    finally:
        tab.kill()


class Tab:
    """A tab of a browser with the tools, whose uncaught errors are kept."""

    def __init__(self, context: BrowserContext, url: str, path: str = "") -> None:
        self.page = context.new_page()
        self.uncaught: list[str] = []
        self.tolerated: set[str] = set()
        self.page.on("pageerror", lambda error: self.uncaught.append(str(error)))
        self.page.add_init_script(
            f"globalThis.ORIGIN = location.origin; globalThis.INDEX = '/client/index.js';{TOOLS}"
        )
        self.url = url
        self.page.goto(url + path)

    def run(self, body: str, *args: Any) -> Any:
        """Run it as the body of an async function whose arguments are `args`."""
        return self.page.evaluate("async (args) => {" + body + "}", list(args))


@contextmanager
def opened(browser: Browser, url: str, path: str = "") -> Iterator[Tab]:
    """A tab in which nothing may fail that no test has tolerated."""
    tab = Tab(browser.new_context(), url, path)
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
