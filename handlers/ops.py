"""For operators and clients alike: is it alive, may it have traffic, what time is it."""

from collections.abc import Callable

from handlers.api import ApiHandler
from handlers.origins import Origins
from lockstep import __version__, metrics
from lockstep.metrics import Metrics

DRIFT_TOLERANCE_MS = 50


class HealthHandler(ApiHandler):
    """GET /health: the loop turns."""

    is_limited = False

    async def get(self) -> None:
        self.reply_bare({"status": "ok"})


class ReadyHandler(ApiHandler):
    """GET /ready: may a proxy send traffic here?"""

    is_limited = False

    def initialize(self, origins: Origins, not_ready: Callable[[], list[str]]) -> None:  # type: ignore[override]
        super().initialize(origins)
        self._not_ready = not_ready

    async def get(self) -> None:
        reasons = self._not_ready()
        if reasons:
            self.reply_bare({"status": "not_ready", "reasons": reasons}, 503)
        else:
            self.reply_bare({"status": "ready"})


class MetricsHandler(ApiHandler):
    """GET /metrics, for Prometheus."""

    is_limited = False

    def initialize(self, origins: Origins, metrics: Metrics) -> None:  # type: ignore[override]
        super().initialize(origins)
        self._metrics = metrics

    async def get(self) -> None:
        self.reply_text(self._metrics.text(), metrics.CONTENT_TYPE)


class TimeHandler(ApiHandler):
    """GET /v1/time: the clock that all others follow."""

    def initialize(self, origins: Origins, shown_ms: Callable[[], int]) -> None:  # type: ignore[override]
        super().initialize(origins)
        self._shown_ms = shown_ms

    async def get(self) -> None:
        self.reply_bare(
            {
                "timestamp_ms": self._shown_ms(),
                "server_version": __version__,
                "drift_tolerance_ms": DRIFT_TOLERANCE_MS,
            }
        )


class OpenApiHandler(ApiHandler):
    """GET /openapi.json: the contract, for machines."""

    is_limited = False

    def initialize(self, origins: Origins, document: bytes) -> None:  # type: ignore[override]
        super().initialize(origins)
        self._document = document

    async def get(self) -> None:
        self._send(200, self._document)
