"""Runs the Python blocks of one page, as they come on standard input, in one namespace."""

import json
import sys
import threading
import traceback
from typing import Any

NAMESPACE: dict[str, Any] = {"__name__": "__main__"}


def run(source: str) -> None:
    try:
        exec(compile(source, "snippet", "exec"), NAMESPACE)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        raise SystemExit(1) from None


def main() -> None:
    for line in sys.stdin:
        block = json.loads(line)
        if block["goes_on"]:
            threading.Thread(target=run, args=[block["source"]], daemon=True).start()
        else:
            run(block["source"])
            print("-- done --", flush=True)


if __name__ == "__main__":
    main()
