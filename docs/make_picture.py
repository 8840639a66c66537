"""Makes docs/page.png: a running chess clock on two screens.

    .venv/bin/python docs/make_picture.py

It needs what the tests need: the extra `test`, and Chromium.
"""

import asyncio
import base64
import sys
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from tests.support.browser import FLAGS, chromium_path  # noqa: E402
from tests.support.processes import ServerProcess  # noqa: E402

# Two screens in their frames; what they show is put in as pictures.
FRAME = """
<style>
  body {{ margin: 0; width: 1400px; height: 800px; position: relative; overflow: hidden;
          background: linear-gradient(160deg, #dfe9e3, #cbd8d2); font: 15px sans-serif; color: #5d6661; }}
  figure {{ position: absolute; margin: 0; overflow: hidden; box-shadow: 0 24px 60px #16201c40; }}
  img {{ display: block; }}
  .window {{ left: 56px; top: 50px; border-radius: 14px; background: #fff; }}
  .window figcaption {{ display: flex; gap: 8px; align-items: center; height: 40px; padding: 0 16px; }}
  .window i {{ width: 12px; height: 12px; border-radius: 50%; background: #d5d8d5; }}
  .window b {{ margin: 0 auto; padding: 3px 90px; border-radius: 8px; background: #eff1ef; }}
  .phone {{ right: 52px; top: 100px; padding: 12px; border-radius: 44px; background: #0a0c0b; }}
  .phone img {{ border-radius: 32px; }}
</style>
<figure class="window"><figcaption><i></i><i></i><i></i><b>{host}/?session=…</b></figcaption>
  <img width="940" src="data:image/png;base64,{window}"></figure>
<figure class="phone"><img width="310" src="data:image/png;base64,{phone}"></figure>
"""


async def screen(browser: Browser, url: str, scheme: str, width: int, height: int) -> Page:
    size = {"width": width, "height": height}
    page = await browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    await page.goto(url)
    return page


async def shoot(pages: list[Page]) -> list[str]:
    """All pages within one second of their clocks, so that the picture tells no lie."""
    while True:
        before = [await page.locator(".face").all_text_contents() for page in pages]
        shots = await asyncio.gather(*(page.screenshot() for page in pages))
        after = [await page.locator(".face").all_text_contents() for page in pages]
        if len({str(faces) for faces in before + after}) == 1:
            return [base64.b64encode(shot).decode() for shot in shots]


async def make(url: str) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        window = await screen(browser, url, "light", 940, 650)
        await window.locator("[data-preset=chess]").nth(1).click()
        await window.click("#primary")
        phone = await screen(browser, window.url, "dark", 360, 674)
        # A few moves, so that there is something to see.
        for turn, face in ((3, "4:57"), (4, "4:56"), (5, "4:55")):
            await window.wait_for_function(
                "(face) => document.querySelector('[data-look=running] .face').textContent === face", arg=face
            )
            await window.click("#primary")
            await phone.wait_for_function(
                "(turn) => document.querySelector('#version').textContent === `v${turn}`", arg=turn
            )
        await window.mouse.move(0, 0)
        await window.wait_for_function("document.getAnimations().length === 0")
        shots = await shoot([window, phone])
        frame = await browser.new_page(viewport={"width": 1400, "height": 800})
        await frame.set_content(FRAME.format(host="lockstep.example", window=shots[0], phone=shots[1]))
        await frame.screenshot(path=DOCS / "page.png")
        await browser.close()


if __name__ == "__main__":
    server = ServerProcess("--log-level=warning")
    try:
        asyncio.run(make(server.url))
    finally:
        server.stop()
