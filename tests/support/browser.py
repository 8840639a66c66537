"""Headless Chromium for the tests of the page and of its client."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

from tests.support.processes import wait_until

# Without those about the background, each start looks for hosts that are none of the tests' business.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# What is expected of a page comes at once; on a machine that has much else to do it takes its time.
EXPECTED_WITHIN_MS = 30_000
expect.set_options(timeout=EXPECTED_WITHIN_MS)


def chromium_path() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.fail("Chromium is missing; install it, e.g. by: apt-get install chromium", pytrace=False)
    return path


@contextlib.contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A browser, shared by the tests of one module: its event loop must not outlive them."""
    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *flags])
        yield browser
        browser.close()


@contextlib.contextmanager
def everyday_chromium() -> Iterator[BrowserContext]:
    """A browser as people have it: of its tabs one is in front, and it keeps pages that were left.

    Playwright's own browsers take every tab for the one in front, and keep nothing.
    """
    # Its last process may still write as the first one ends.
    with tempfile.TemporaryDirectory(prefix="lockstep-chromium-", ignore_cleanup_errors=True) as profile:
        command = [chromium_path(), "--headless=new", *FLAGS, "--remote-debugging-port=0"]
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL
        )
        try:
            file = Path(profile) / "DevToolsActivePort"
            port = wait_until(lambda: file.exists() and file.read_text().partition("\n")[0], 20)
            with sync_playwright() as playwright:
                address = f"http://127.0.0.1:{port}"
                yield playwright.chromium.connect_over_cdp(address, no_defaults=True).contexts[0]
        finally:
            process.terminate()
            process.wait()
