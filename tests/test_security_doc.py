"""docs/security.md names for each threat the test that shows what stops it."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = [
    line.strip("|").split("|")
    for line in (TESTS.parent / "docs" / "security.md").read_text().splitlines()
    if line.startswith("| ") and "---" not in line
][1:]


def test_each_threat_is_shown_to_be_stopped_by_a_test_that_exists() -> None:
    assert TABLE
    for threat, _, shown_by in TABLE:
        files = re.findall(r"(test_\w+\.py)", shown_by)
        assert files, threat
        code = "".join((TESTS / name).read_text() for name in files)
        for test in re.findall(r"(?<![\w/])test_\w+(?!\.py)\b", re.sub(r"test_\w+\.py", "", shown_by)):
            assert f"def {test}(" in code, f"{threat.strip()}: {test}"
