"""Everything that handlers ask, in one object that is passed to each of them."""

from collections.abc import Callable
from dataclasses import dataclass

from handlers.event_streams import EventStreams
from handlers.origins import Hosts, Origins
from handlers.tokens import Tokens
from lockstep.addresses import Addresses
from lockstep.limits import RateLimits
from lockstep.live.presence_tracker import PresenceTracker
from lockstep.live.virtual_time import VirtualTime
from lockstep.metrics import Metrics
from lockstep.perform import Performer
from lockstep.session_list import SessionList
from lockstep.sessions import Sessions


@dataclass(frozen=True, slots=True)
class Services:
    """What a process answers requests with. `server.py` puts it together."""

    sessions: Sessions
    session_list: SessionList
    presence: PresenceTracker
    performer: Performer
    streams: EventStreams
    shown_ms: Callable[[], int]
    """The clock that clients are shown."""
    tokens: Tokens
    origins: Origins
    hosts: Hosts | None
    """None where the server may be called by any name."""
    addresses: Addresses
    rates: RateLimits | None
    """None where nothing is limited."""
    virtual_time: VirtualTime | None
    """None where time passes by itself."""
    metrics: Metrics
    not_ready: Callable[[], list[str]]
    """The reasons why no traffic should come here."""
    not_served: Callable[[], list[str]]
    """What of the sessions this process cannot reach, and why."""
    is_draining: Callable[[], bool]
