"""The page at /: one static file for each path; nothing is built."""

from pathlib import Path

from tornado.web import StaticFileHandler

from handlers.json_errors import JsonErrors
from handlers.services import Services

SECURITY_HEADERS = {
    # Nothing inline, nothing from elsewhere; the WebSocket is of the page's own origin.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self' ws: wss:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
_HERE = Path(__file__).parent
_STYLES = ("page.css", "session.css")
# The client that people install; without a bundler a page imports it from here.
_CLIENT = _HERE.parent.parent / "clients" / "js" / "src"
FILES = {
    "/": _HERE / "index.html",
    **{f"/{name}": _HERE / name for name in _STYLES},
    **{f"/{path.name}": path for path in sorted(_HERE.glob("*.js"))},
    "/favicon.svg": _HERE / "favicon.svg",
    **{f"/client/{path.name}": path for path in sorted(_CLIENT.glob("*.js"))},
}


class PageHandler(JsonErrors, StaticFileHandler):
    """A file of the page, revalidated at each visit so that a new release is seen at once."""

    def initialize(self, services: Services, file: Path) -> None:  # type: ignore[override]
        super().initialize(path=str(file.parent))
        self.services = services
        self._file_name = file.name

    def parse_url_path(self, url_path: str) -> str:
        return self._file_name

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")
        for name, value in SECURITY_HEADERS.items():
            self.set_header(name, value)
        if self.request.path.startswith("/client/"):
            # Anybody may load the client: a page whose origin is not admitted is told so where it connects.
            self.set_header("Access-Control-Allow-Origin", "*")
        self.set_cors_headers()
