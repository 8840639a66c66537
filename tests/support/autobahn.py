"""The Autobahn test suite against the connections of the server: make conformance.

Its groups are framing, pings, reserved bits, opcodes, fragmentation, UTF-8, closing, limits, compression.
Others may be named behind the Python 2.7.
"""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from tests.support.echo_server import echoing

SUITE = "autobahntestsuite==0.8.2"
GROUPS = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*", "12.*", "13.*"]
HOME = Path(sys.prefix) / "autobahn"
RUN = "import site, sys; site.addsitedir(sys.argv.pop(1)); from autobahntestsuite.wstest import run; run()"
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}
# They offer compression only with a window of 9 bits from the server, which is declined.
DECLINED = ("13.3.", "13.5.")


def main() -> None:
    python2 = sys.argv[1]
    try:
        version = subprocess.run([python2, "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        sys.exit(
            f"conformance: {python2} is missing, for which Autobahn is written: set PYTHON2 to a Python 2.7"
        )
    if b"Python 2.7" not in version.stdout + version.stderr:
        sys.exit(
            f"conformance: {python2} is no Python 2.7, for which Autobahn is written: set PYTHON2 to one"
        )
    if not (HOME / "autobahntestsuite").exists():
        install = [python2, "-m", "pip", "install", "--quiet", "--target", str(HOME), SUITE]
        if subprocess.run(install).returncode:
            sys.exit(f"conformance: {SUITE} cannot be installed by {python2} -m pip")
    asyncio.run(run(python2, sys.argv[2:] or GROUPS))


async def run(python2: str, groups: list[str]) -> None:
    reports = HOME / "reports"
    async with echoing() as url:
        server = {"agent": "lockstep", "url": url.rstrip("/")}
        spec = {"outdir": str(reports), "servers": [server], "cases": groups}
        spec |= {"exclude-cases": [], "exclude-agent-cases": {}}
        path = HOME / "spec.json"
        path.write_text(json.dumps(spec))
        arguments = [str(HOME), "-m", "fuzzingclient", "-s", str(path)]
        client = await asyncio.create_subprocess_exec(
            python2, "-c", RUN, *arguments, stdout=asyncio.subprocess.DEVNULL
        )
        if await client.wait():
            sys.exit("conformance: the fuzzing client failed")
    verdicts = json.loads((reports / "index.json").read_text())["lockstep"]
    failed = [case for case, verdict in verdicts.items() if not is_passed(case, verdict)]
    declined = sum(case.startswith(DECLINED) for case in verdicts)
    print(f"{len(verdicts)} cases, {declined} declined, {len(failed)} failed; reports in {reports}")
    sys.exit("failed: " + " ".join(failed) if failed else 0)


def is_passed(case: str, verdict: dict[str, str]) -> bool:
    if case.startswith(DECLINED):
        return verdict["behavior"] == "UNIMPLEMENTED"
    return {verdict["behavior"], verdict["behaviorClose"]} <= GOOD


if __name__ == "__main__":
    main()
