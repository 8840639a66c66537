"""For operators and clients alike: is it alive, may it have traffic, what time is it."""

from collections.abc import Callable

from handlers.base import ApiHandler
from handlers.origins import Origins
from lockstep import __version__
from lockstep.contract import Broker

DRIFT_TOLERANCE_MS = 50


class HealthHandler(ApiHandler):
    """GET /health: the loop turns."""

    def get(self) -> None:
        self.reply_bare({"status": "ok"})


class ReadyHandler(ApiHandler):
    """GET /ready: may a proxy send traffic here?"""

    def initialize(self, origins: Origins, not_ready: Callable[[], list[str]]) -> None:  # type: ignore[override]
        super().initialize(origins)
        self._not_ready = not_ready

    def get(self) -> None:
        reasons = self._not_ready()
        if reasons:
            self.reply_bare({"status": "not_ready", "reasons": reasons}, 503)
        else:
            self.reply_bare({"status": "ready"})


class TimeHandler(ApiHandler):
    """GET /v1/time: the clock that all others follow."""

    def initialize(self, origins: Origins, broker: Broker) -> None:  # type: ignore[override]
        super().initialize(origins)
        self._broker = broker

    def get(self) -> None:
        self.reply_bare(
            {
                "timestamp_ms": self._broker.now_ms(),
                "server_version": __version__,
                "drift_tolerance_ms": DRIFT_TOLERANCE_MS,
            }
        )
