"""Profiles of a browser, lent to one test after the other."""

from typing import NamedTuple

from playwright.sync_api import Browser, BrowserContext, CDPSession, Page


class _Kept(NamedTuple):
    """Made with these options; the page stays open, since a renderer ends with its last one."""

    options: dict[str, object]
    context: BrowserContext
    page: Page
    session: CDPSession


class Profiles:
    """The first page of a new profile costs three times what another page of an old one costs.

    So a profile is lent again, and has forgotten by then what it had stored. What cannot be taken from it (a
    clock of playwright's, scripts that run first) is for tests that close it.
    """

    def __init__(self, browser: Browser, url: str) -> None:
        """`url`: any page of the site that the tests show: renderers are for one site each."""
        self.browser = browser
        self._url = url
        self._kept: list[_Kept] = []
        self._lent: set[BrowserContext] = set()

    def lend(self, *, apart: bool = False, **options: object) -> BrowserContext:
        """One with playwright's options: the same within a test, or, `apart`, one that nobody has."""
        alike = [each.context for each in self._kept if each.options == options]
        lent = [context for context in alike if context in self._lent]
        free = [context for context in alike if context not in self._lent]
        if lent and not apart:
            return lent[0]
        context = free[0] if free else self._made(options)
        self._lent.add(context)
        return context

    def _made(self, options: dict[str, object]) -> BrowserContext:
        context = self.browser.new_context(**options)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(self._url)
        self._kept.append(_Kept(options, context, page, context.new_cdp_session(page)))
        context.on("close", self._forget)
        return context

    def _forget(self, context: BrowserContext) -> None:
        self._kept = [each for each in self._kept if each.context is not context]
        self._lent.discard(context)

    def take_back(self, *but: BrowserContext) -> None:
        """All others that were lent; the profiles that a test has made itself are closed."""
        kept = {each.context: each for each in self._kept}
        for context in set(self.browser.contexts).difference(but):
            if context not in kept:
                context.close()
            elif context in self._lent:
                for page in context.pages:
                    if page is not kept[context].page:
                        page.close()
                context.clear_permissions()
                everything = {"origin": "*", "storageTypes": "all"}
                kept[context].session.send("Storage.clearDataForOrigin", everything)
        self._lent.intersection_update(but)
