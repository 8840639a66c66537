"""clients/js as a package: how large it is, and what its types say."""

import gzip
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.node import NODE, SOURCES

PACKAGE = SOURCES.parent
ESBUILD = PACKAGE / "node_modules" / ".bin" / "esbuild"
TSC = PACKAGE / "node_modules" / "typescript" / "bin" / "tsc"
MAX_PAGE_BYTES = 8_192


def bundled_bytes(source: str) -> int:
    """Of what a bundler makes of it, as it is sent."""
    command = [str(ESBUILD), "--bundle", "--minify", "--format=esm", "--target=es2022"]
    done = subprocess.run(command, input=source.encode(), cwd=SOURCES, capture_output=True, check=True)
    return len(gzip.compress(done.stdout, 9))


def test_what_a_page_follows_sessions_with_is_small() -> None:
    assert bundled_bytes('export * from "./index.js";') < MAX_PAGE_BYTES
    # What is not imported is left out.
    assert bundled_bytes('import { formatClock } from "./index.js"; formatClock(1);') < 500


def checked(folder: Path, *options: str) -> str:
    command = [str(NODE), str(TSC), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `npm pack` puts in as types/."""
    folder = tmp_path_factory.mktemp("package") / "types"
    assert checked(PACKAGE, "--outDir", str(folder)) == ""
    return folder


@pytest.mark.long
def test_no_signature_has_any(types: Path) -> None:
    declared = sorted(types.glob("*.d.ts"))
    assert {"index.d.ts", "lockstep.d.ts", "subscription.d.ts", "rest.d.ts"} <= {
        each.name for each in declared
    }
    for each in declared:
        without_comments = re.sub(r"/\*.*?\*/|//[^\n]*", "", each.read_text(), flags=re.DOTALL)
        assert re.findall(r"[^\n]*\bany\b[^\n]*", without_comments) == [], each.name


USED = """
import { Lockstep, sessionClock } from "./types/index.js";
import type { State, Subscription } from "./types/index.js";

const lockstep = new Lockstep("https://clocks.example.org", { token: async () => "a.b.c" });
const session: Subscription = lockstep.subscribe("7f3c1f6e-2f6b-4b0e-9a51-0d6f3c1d2e3f");
interface Move { from: string; to: string }
const move: Move = { from: "e2", to: "e4" };

export async function press(state: State): Promise<string> {
  const body = { expected_version: state.version, data: move };
  const { position, lap_ms } = await session.command("switch", body);
  await session.command("adjust", { delta_ms: -1_000, target: state.participants[0]?.participant_id });
  await session.command("pause", undefined, { signal: AbortSignal.timeout(1_000) });
  return `${position} ${lap_ms ?? 0}`;
}
session.addEventListener("state", ({ detail: { state, events, reason } }) => {
  if (state.sync_mode === "count_up") console.log(state.lap_count, state.clock?.elapsed_ms);
  else if (state.sync_mode === "global") console.log(state.is_flagged, state.clock?.remaining_ms);
  const ms = sessionClock(state, lockstep.time.now())?.ms;
  console.log(ms, events[0]?.data?.["from"], reason === "repair");
});
session.addEventListener("presence", ({ detail }) => console.log(detail.presence?.present?.[0]?.subject));
session.addEventListener("error", ({ detail }) => console.log(detail.error.code, detail.error.details));
lockstep.addEventListener("status", ({ detail }) => console.log(detail.status, detail.retryMs ?? 0));

// @ts-expect-error no such command
await session.command("fly");
// @ts-expect-error no such field
await session.command("switch", { next: "x" });
// @ts-expect-error a number
await session.command("adjust", { delta_ms: "1000" });
// @ts-expect-error no such event
session.addEventListener("statechange", () => {});
// @ts-expect-error of another mode
session.addEventListener("state", ({ detail }) => console.log(detail.state.lap_count));
// @ts-expect-error it is the server's to say
session.state = null;
// @ts-expect-error no such option
new Lockstep("/", { tokens: "" });
new Lockstep("/", { WebSocket });
// @ts-expect-error it is no WebSocket
new Lockstep("/", { WebSocket: Map });
"""


@pytest.mark.long
def test_an_application_in_strict_typescript_is_checked_against_it(types: Path) -> None:
    (types.parent / "app.ts").write_text(USED)
    options = ["--strict", "--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess", "--noEmit"]
    target = ["--target", "es2022", "--module", "nodenext", "--lib", "es2023,dom,dom.iterable"]
    (types.parent / "package.json").write_text('{"type": "module"}')
    assert checked(types.parent, *options, *target, "app.ts") == ""
