"""Tabs of a browser that show the server's page, and what people meet there."""

from collections.abc import Iterator
from typing import Any

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, expect

from tests.support.profiles import Profiles

SMALL_PHONE = {"width": 320, "height": 568}
DESKTOP = {"width": 1280, "height": 800}
RUNS = ".panel[data-look=running]"


class Tabs:
    """Tabs of one test, of one profile unless they are opened apart; what they complain of is kept."""

    def __init__(self, profiles: Profiles, url: str) -> None:
        self.profiles = profiles
        self.browser = profiles.browser
        self.url = url
        self.complaints: list[str] = []

    def open(self, url: str = "", *, apart: bool = False, **options: object) -> Page:
        page = self.profiles.lend(apart=apart, **options).new_page()
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
        answer = self.profiles.lend(**options).request.post(f"{self.url}/v1/sessions", data=body)
        page = self.open(f"{self.url}/?session={answer.json()['data']['session_id']}", **options)
        expect(page.locator("#session")).to_be_visible()
        return page

    def also_open(self, page: Page, base: str = "") -> Page:
        """The same session in a tab of somebody else."""
        other = self.open((base or self.url) + "/?" + page.url.partition("?")[2], apart=True)
        expect(other.locator("#session")).to_be_visible()
        return other

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def close(self, *but: BrowserContext) -> None:
        """All tabs but those of these profiles."""
        before = len(self.complaints)
        self.profiles.take_back(*but)
        # A page that is closed while it connects says that, too.
        last = [each for each in self.complaints[before:] if "connection is established" not in each]
        self.complaints[before:] = last


def clean_tabs(profiles: Profiles, url: str) -> Iterator[Tabs]:
    """Tabs for a fixture to yield from: what they complain of, and the test has not cleared, fails it."""
    tabs = Tabs(profiles, url)
    yield tabs
    tabs.close()
    assert tabs.complaints == []


# What axe-core asks of colours alone: between the schemes nothing else differs.
OF_COLOURS = ["color-contrast", "link-in-text-block"]
_AXE = """(rules) => axe.run({
    resultTypes: ["violations"],
    ...(rules && { runOnly: { type: "rule", values: rules } }),
}).then(({ violations }) => violations)"""


def barriers(page: Page) -> list[str]:
    """What axe-core finds that keeps people out, as it stands: in both schemes, on a desk and on a phone."""
    found = []
    if not page.evaluate("() => 'axe' in globalThis"):
        page.evaluate(AXE_SCRIPT)
    for size in (DESKTOP, SMALL_PHONE):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        for scheme, rules in (("light", None), ("dark", OF_COLOURS)):
            # Colours that are still on their way to others are nobody's contrast.
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
            for rule in page.evaluate(_AXE, rules):
                found += [f"{scheme} {size['width']} {rule['id']}: {node['html']}" for node in rule["nodes"]]
    return found
