"""Headless Chromium for the tests of the page and of its client."""

import contextlib
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

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
