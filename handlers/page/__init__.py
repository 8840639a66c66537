"""The page at /, one static file each; nothing is built."""

from pathlib import Path

from tornado.web import StaticFileHandler

from handlers.base import JsonErrors
from handlers.origins import Origins

HERE = Path(__file__).parent
CLIENT = HERE.parent.parent / "clients" / "js"


class PageHandler(JsonErrors, StaticFileHandler):
    """A file of the page, revalidated at each visit so that a new release is seen at once."""

    def initialize(  # type: ignore[override]
        self, origins: Origins, path: str, default_filename: str | None = None
    ) -> None:
        super().initialize(path, default_filename)
        self._origins = origins

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Content-Type-Options", "nosniff")
        for name, value in self._origins.headers(self.request.headers.get("Origin")).items():
            self.set_header(name, value)
