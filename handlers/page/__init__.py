"""The page at /, one static file each; nothing is built."""

from pathlib import Path

from tornado.web import StaticFileHandler

from handlers.base import JsonErrors

SECURITY_HEADERS = {
    # Nothing inline, nothing from elsewhere; the WebSocket is of the page's own origin.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self' ws: wss:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
HERE = Path(__file__).parent
CLIENT = HERE.parent.parent / "clients" / "js"


class PageHandler(JsonErrors, StaticFileHandler):
    """A file of the page, revalidated at each visit so that a new release is seen at once."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")
        for name, value in SECURITY_HEADERS.items():
            self.set_header(name, value)
        self.admit_origin()
