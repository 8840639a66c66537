"""docs/redis.md lists every kind of key and channel that a process uses, and no other."""

import re

import pytest

from broker.keys import Channels
from broker.rights import needs
from tests.support.processes import ROOT

# As `session:<id>` stands in the first column: its name up to the first part that varies.
DOCUMENTED = set(
    re.findall(
        r"^\| `([a-z:-]+)[^`]*` \|", (ROOT / "docs" / "redis.md").read_text().partition("## Scripts")[0], re.M
    )
)


@pytest.mark.parametrize("routing", Channels.MODES)
def test_every_key_and_channel_in_use_is_documented(routing: str) -> None:
    used = {need.pattern.lstrip("~&").rstrip("*") for need in needs("", routing)} - {""}
    assert used
    for name in used:
        assert any(each.startswith(name) for each in DOCUMENTED), name


def test_every_documented_key_and_channel_is_in_use() -> None:
    used = {need.pattern.lstrip("~&").rstrip("*") for mode in Channels.MODES for need in needs("", mode)} - {
        ""
    }
    for name in DOCUMENTED:
        assert any(name.startswith(each) for each in used), name
