"""What is scraped, and when somebody is called: checked by Prometheus itself, and by its promtool."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from tornado.netutil import bind_sockets

from tests.support.load import chess, data, eventually, rest
from tests.support.processes import ROOT
from tests.support.stack import PROCESSES, Stack

RULES = ROOT / "deploy" / "prometheus"


def promtool(*arguments: str) -> None:
    if shutil.which("promtool") is None:
        pytest.fail("promtool is missing: install Debian's package prometheus", pytrace=False)
    told = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


def test_prometheus_takes_the_configuration() -> None:
    promtool("check", "config", "prometheus.yml")


def test_every_alert_fires_when_it_should_and_not_for_less() -> None:
    promtool("test", "rules", "tests.yml")


def test_every_alert_is_tested_and_explained() -> None:
    alerts = re.findall(r"alert: (\w+)", (RULES / "alerts.yml").read_text())
    fired = re.findall(r"alertname: (\w+)\n", (RULES / "tests.yml").read_text())
    explained = re.findall(
        r"^\*\*(Lockstep\w+)\*\*", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE
    )
    assert alerts
    assert sorted(alerts) == sorted(fired)
    assert sorted(alerts) == sorted(explained)


class Prometheus:
    """Debian's, with the project's configuration; but in seconds, what there is in minutes."""

    def __init__(self, folder: Path) -> None:
        """`folder` has the stack's run/, where the configuration looks for it."""
        copy = folder / "deploy" / "prometheus"
        shutil.copytree(RULES, copy)
        for name in ("prometheus.yml", "alerts.yml"):
            hurried = re.sub(
                r"(_interval|for): \d+[sm]$", r"\1: 1s", (copy / name).read_text(), flags=re.MULTILINE
            )
            (copy / name).write_text(hurried)
        (listener,) = bind_sockets(0, "127.0.0.1")
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1/"
        listener.close()
        self._log = (folder / "prometheus.log").open("wb")
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={copy / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={self.url.split('/')[2]}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    async def ask(self, what: str, **parameters: str) -> Any:
        answer = await rest(f"{self.url}{what}?{urlencode(parameters)}", method="GET")
        return json.loads(answer.body)["data"] if answer.code == 200 else None

    async def query(self, expression: str) -> list[Any]:
        found = await self.ask("query", query=expression)
        return found["result"] if found else []

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self._log.close()


@contextmanager
def watched_stack(folder: Path) -> Iterator[tuple[Stack, Prometheus]]:
    if shutil.which("prometheus") is None:
        pytest.fail("prometheus is missing: install Debian's package prometheus", pytrace=False)
    stack = Stack(folder / "run")
    started = stack.up()
    assert started.returncode == 0, started.stderr
    prometheus = Prometheus(folder)
    try:
        yield stack, prometheus
    finally:
        prometheus.close()
        assert stack.command("down").returncode == 0


@pytest.mark.long
async def test_prometheus_scrapes_all_processes_and_calls_when_one_is_down(tmp_path: Path) -> None:
    with watched_stack(tmp_path) as (stack, prometheus):
        data(await rest(f"{stack.url}/v1/sessions", chess()))

        async def all_are_up() -> str:
            up = await prometheus.query('up{job="lockstep"} == 1')
            return "" if len(up) == PROCESSES else f"{len(up)} are up"

        await eventually(all_are_up, 20, "not all are scraped")
        rules = (await prometheus.ask("rules"))["groups"][0]["rules"]
        for name in {name for rule in rules for name in re.findall(r"lockstep_\w+", rule["query"])}:
            assert await prometheus.query(name), f"{name} is in a rule and nowhere else"

        async def all_are_evaluated() -> str:
            rules = (await prometheus.ask("rules"))["groups"][0]["rules"]
            return str(
                [rule["lastError"] or rule["health"] for rule in rules if rule["health"] != "ok"] or ""
            )

        await eventually(all_are_evaluated, 10, "rules fail")

        async def all_is_well() -> str:
            return str((await prometheus.ask("alerts"))["alerts"] or "")

        await eventually(all_is_well, 20, "there is an alert")

        name = min(stack.pids())
        assert stack.command("ctl", "stop", f"lockstep:{name}").returncode == 0

        async def somebody_is_called() -> str:
            alerts = (await prometheus.ask("alerts"))["alerts"]
            firing = [each["labels"] for each in alerts if each["state"] == "firing"]
            called = [(labels["alertname"], labels["instance"]) for labels in firing]
            return "" if called == [("LockstepProcessDown", name)] else str(alerts)

        await eventually(somebody_is_called, 20, "nobody is called")
        assert stack.command("ctl", "start", f"lockstep:{name}").returncode == 0

        await eventually(all_is_well, 20, "the alert stays")
