"""REST: a session's event stream, where its request ends."""

from handlers.event_streams import some_retry
from handlers.reply import Reply
from handlers.request import Request
from handlers.services import Services
from lockstep.requests import kinds
from lockstep.wire.events import CONTENT_TYPE

# Not kept, not changed, and passed on at once: the last is nginx's own.
_HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


async def follow_session(request: Request, services: Services) -> Reply:
    """Whoever may follow is answered 200, now or later: an EventSource gives up for good on anything else."""
    session_id = kinds.valid_session_id(request.session_id)
    if services.is_draining():
        return Reply(200, some_retry(), _HEADERS, CONTENT_TYPE)
    reply = Reply(200, headers=_HEADERS, content_type=CONTENT_TYPE, has_length=False)
    if request.method != "HEAD":
        reply.successor = await services.streams.admit(
            session_id, request.access, request.address, _position(request)
        )
    return reply


def _position(request: Request) -> str | None:
    """Where the client has got to. Its own header counts, which comes with each further attempt."""
    in_query = request.query_arguments().get("lastEventId", [None])
    return request.headers.get("Last-Event-ID") or in_query[0]
