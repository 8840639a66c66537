"""What is scraped, and when somebody is called: checked by Prometheus's own promtool."""

import re
import shutil
import subprocess

import pytest

from tests.processes import ROOT

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
