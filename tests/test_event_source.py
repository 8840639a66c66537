"""The event stream in a browser, by the EventSource that it has."""

import uuid
from typing import Any

from playwright.sync_api import Browser

from tests.support.processes import ServerProcess, running
from tests.support.redis_server import RedisServer, free_port
from tests.support.tabs import Tab, opened

# A document that connects to nobody itself, and may to whomever it wants.
QUIET = "/health"
# `watch` opens the stream of a session and keeps what comes, by the type of its events.
WATCH = """
window.heard = [];
window.watch = (url) => {
    window.source = new EventSource(url);
    for (const type of ["snapshot", "update", "message", "deleted", "presence", "unsubscribed"]) {
        source.addEventListener(type, ({ data, lastEventId }) =>
            heard.push({ type, lastEventId, message: JSON.parse(data) }));
    }
    source.addEventListener("open", () => heard.push({ type: "open" }));
    source.addEventListener("error", () => heard.push({ type: "error", readyState: source.readyState }));
};
window.link = { status: "" }, window.log = heard;
window.types = () => heard.map(({ type }) => type);
window.versions = () => heard.flatMap(({ type, message }) =>
    type === "update" ? message.events.map(({ version }) => version) : []);
"""


def watch(tab: Tab, path: str) -> None:
    tab.run(WATCH + "watch(args[0]);", path)


def chess(session_id: str, **fields: Any) -> dict[str, Any]:
    participants = [{"participant_id": str(uuid.uuid4()), "total_time_ms": 600_000} for _ in range(2)]
    return {"session_id": session_id, "sync_mode": "per_participant", "participants": participants} | fields


def test_a_page_hears_all_that_happens_to_a_session(browser: Browser, server_process: ServerProcess) -> None:
    session_id = str(uuid.uuid4())
    with opened(browser, server_process.url, QUIET) as tab:
        watch(tab, f"/v1/sessions/{session_id}/stream")
        tab.run("await until(() => heard.length === 2)")
        tab.run("await rest('POST', '', args[0]); await until(() => heard.length === 3)", chess(session_id))
        tab.run(
            """const path = "/" + args[0];
            await rest("POST", path + "/start");
            await rest("POST", path + "/messages", { type: "CHEER" });
            await until(() => heard.length === 5);
            await rest("DELETE", path);
            await until(() => heard.length === 6);
            source.close();""",
            session_id,
        )
        heard = tab.run("return heard")
    assert [each["type"] for each in heard] == [
        "open",
        "snapshot",
        "snapshot",
        "update",
        "message",
        "deleted",
    ]
    assert (heard[1]["lastEventId"], heard[1]["message"]["state"]) == ("", None)
    assert heard[2]["lastEventId"] == heard[2]["message"]["position"] == heard[3]["message"]["from"]
    assert heard[4]["message"]["message"] == {"type": "CHEER"}
    assert {each["lastEventId"] for each in heard[3:]} == {heard[3]["message"]["position"]}


def test_a_page_goes_on_by_itself_when_the_server_was_restarted(
    browser: Browser, redis_server: RedisServer
) -> None:
    """With what it missed, nothing twice."""
    session_id, port = str(uuid.uuid4()), free_port()

    def process() -> ServerProcess:
        return ServerProcess(f"--broker={redis_server.url}", "--prefix=es:", f"--port={port}")

    with running(ServerProcess(f"--broker={redis_server.url}", "--prefix=es:")) as other:
        first = process()
        try:
            with opened(browser, first.url, QUIET) as tab:
                tab.run("await rest('POST', '', args[0])", chess(session_id))
                watch(tab, f"/v1/sessions/{session_id}/stream")
                tab.run("await until(() => types().includes('snapshot'))")
                tab.page.request.post(f"{other.url}/v1/sessions/{session_id}/start")
                tab.run("await until(() => versions().length === 1)")
                first.stop()
                tab.run("await until(() => types().includes('error'))")
                for _ in range(4):
                    tab.page.request.post(f"{other.url}/v1/sessions/{session_id}/switch")
                with running(process()):
                    tab.run("await until(() => versions().length === 5)")
                    tab.page.request.post(f"{other.url}/v1/sessions/{session_id}/pause")
                    tab.run("await until(() => versions().length === 6)")
                    heard = tab.run("source.close(); return heard")
        finally:
            first.stop()
    told = [each for each in heard if each["type"] in ("snapshot", "update")]
    assert [each["type"] for each in told] == ["snapshot"] + ["update"] * 6
    positions = [each["message"]["position"] for each in told]
    assert [each["message"]["from"] for each in told[1:]] == positions[:-1]
    errors = [each["readyState"] for each in heard if each["type"] == "error"]
    assert set(errors) == {0}, "it never gave up"


def test_a_page_of_another_site_hears_a_stream_only_where_its_origin_is_let_in(
    browser: Browser, server_process: ServerProcess
) -> None:
    session_id = str(uuid.uuid4())
    path = f"/v1/sessions/{session_id}/stream"
    with (
        opened(browser, server_process.url, QUIET) as tab,
        running(ServerProcess(f"--origins={server_process.url}")) as friend,
        running(ServerProcess()) as stranger,
    ):
        watch(tab, friend.url + path)
        tab.run("await until(() => types().includes('snapshot')); source.close();")
        watch(tab, stranger.url + path)
        tab.run("await until(() => types().includes('error'))")
        heard = tab.run("return heard")
        assert [each["type"] for each in heard] == ["error"]
        assert heard[0]["readyState"] == 2


def test_a_page_whose_token_is_refused_gives_up(browser: Browser, tmp_path: Any) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret of more than thirty-two bytes, for tests only")
    with (
        running(ServerProcess(f"--jwt-secret-file={secret}")) as process,
        opened(browser, process.url, QUIET) as tab,
    ):
        watch(tab, f"/v1/sessions/{uuid.uuid4()}/stream?token=x")
        tab.run("await until(() => types().includes('error'))")
        heard = tab.run("return heard")
    assert [(each["type"], each["readyState"]) for each in heard] == [("error", 2)]
