"""What /metrics says."""

import re

from tests.support.processes import request

SAMPLE = re.compile(r"^(lockstep_\w+)(\{[^}]*\})? (\S+)$", re.M)


async def figures(url: str) -> dict[str, float]:
    """By name and labels, as they stand in the text."""
    answer = await request(f"{url}/metrics", "GET")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {name + labels: float(value) for name, labels, value in SAMPLE.findall(answer.raw.decode())}
