"""Tabs of a browser that show the server's page, and what people meet there."""

from collections.abc import Iterator
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

SMALL_PHONE = {"width": 320, "height": 568}
DESKTOP = {"width": 1280, "height": 800}
RUNS = ".panel[data-look=running]"


class Tabs:
    """Tabs of one test, each with a profile of its own; what they complain of is kept."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        self.url = url
        self.complaints: list[str] = []

    def open(self, url: str = "", **options: object) -> Page:
        page = self.browser.new_context(**options).new_page()  # type: ignore[arg-type]
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(url or self.url)
        return page

    def create(self, preset: str, option: int = 0, url: str = "", **options: object) -> Page:
        page = self.open(url, **options)
        page.locator(f"[data-preset={preset}]").nth(option).click()
        expect(page.locator("#session")).to_be_visible()
        return page

    def start(self, preset: str, option: int = 0, **options: object) -> Page:
        page = self.create(preset, option, **options)
        page.click("#primary")
        expect(page.locator(RUNS)).to_be_visible()
        return page

    def open_session(self, body: dict[str, Any], **options: object) -> Page:
        """A session that is not one of the presets, not yet started."""
        page = self.open(**options)
        script = """async (body) => {
            const init = { method: "POST", headers: { "Content-Type": "application/json" } };
            const answer = await fetch("v1/sessions", { ...init, body: JSON.stringify(body) });
            return (await answer.json()).data.session_id;
        }"""
        page.goto(f"{self.url}/?session={page.evaluate(script, body)}")
        expect(page.locator("#session")).to_be_visible()
        return page

    def also_open(self, page: Page, base: str = "") -> Page:
        """The same session in another tab."""
        other = self.open((base or self.url) + "/?" + page.url.partition("?")[2])
        expect(other.locator("#session")).to_be_visible()
        return other

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def close(self) -> None:
        for context in self.browser.contexts:
            context.close()


def clean_tabs(browser: Browser, url: str) -> Iterator[Tabs]:
    """Tabs for a fixture to yield from: what they complain of, and the test has not cleared, fails it."""
    tabs = Tabs(browser, url)
    yield tabs
    tabs.close()
    assert tabs.complaints == []


def barriers(page: Page) -> list[str]:
    """What axe-core finds that keeps people out, as it stands: in both schemes, on a desk and on a phone."""
    found = []
    for size in (DESKTOP, SMALL_PHONE):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        for scheme in ("light", "dark"):
            # Colours that are still on their way to others are nobody's contrast.
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
            for rule in Axe().run(page).response["violations"]:
                found += [f"{scheme} {size['width']} {rule['id']}: {node['html']}" for node in rule["nodes"]]
    return found
