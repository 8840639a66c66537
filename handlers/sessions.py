"""REST: create, read, list, delete sessions; commands, messages, history."""

from handlers.reply import Reply, data
from handlers.request import Request
from handlers.services import Services
from lockstep import perform
from lockstep.commands import Command
from lockstep.perform import Applied
from lockstep.requests import kinds, parameters
from lockstep.requests.kinds import Violations
from lockstep.wire import heads


async def create_session(request: Request, services: Services) -> Reply:
    return _reply_to(await services.performer.create(_change(request, services)))


async def post_command(command: Command, request: Request, services: Services) -> Reply:
    change = _change(request, services)
    return _reply_to(await services.performer.command(command, request.session_id, change))


async def post_message(request: Request, services: Services) -> Reply:
    return _reply_to(await services.performer.message(request.session_id, _change(request, services)))


async def disconnect(request: Request, services: Services) -> Reply:
    return _reply_to(await services.performer.disconnect(request.session_id, _change(request, services)))


async def delete_session(request: Request, services: Services) -> Reply:
    return _reply_to(await services.performer.delete(request.session_id, _change(request, services)))


async def read_session(request: Request, services: Services) -> Reply:
    session_id = kinds.valid_session_id(request.session_id)
    state = await services.sessions.read(session_id)
    head = heads.read_head(state)
    assert head is not None
    known = parameters.tags(request.headers.get("If-None-Match"))
    # A GET compares weakly (RFC 9110 13.1.2): proxies that recompress mark our tags as weak.
    if known and ("*" in known or head.tag in {each.removeprefix("W/") for each in known}):
        return Reply(304, headers={"ETag": head.tag})
    return Reply(200, data(state), {"ETag": head.tag})


async def list_sessions(request: Request, services: Services) -> Reply:
    violations = Violations()
    fields = {
        "status": parameters.status,
        "limit": parameters.whole_number(1, parameters.MAX_PAGE),
        "cursor": parameters.cursor,
    }
    query = parameters.query(request.query_arguments(), fields, violations)
    violations.raise_if_any()
    states, place = await services.session_list.page(
        query["status"], query["limit"] or parameters.DEFAULT_PAGE, query["cursor"] or (0, "")
    )
    cursor = f'"{place[0]}-{place[1]}"' if place else "null"
    page = b'{"sessions":[' + b",".join(states) + b'],"next_cursor":' + cursor.encode() + b"}"
    return Reply(200, data(page))


async def read_events(request: Request, services: Services) -> Reply:
    violations = Violations()
    session_id = kinds.session_id_in_path(request.session_id, violations)
    fields = {"since": parameters.whole_number(0, kinds.MAX_INT), "epoch": parameters.epoch}
    query = parameters.query(request.query_arguments(), fields, violations)
    violations.raise_if_any()
    history = await services.sessions.events(session_id, query["since"], query["epoch"])
    next_since = "null" if history.next_since is None else str(history.next_since)
    head = f'{{"epoch":"{history.epoch}","next_since":{next_since},"events":['
    return Reply(200, data(head.encode() + b",".join(history.events) + b"]}"))


async def read_presence(request: Request, services: Services) -> Reply:
    session_id = kinds.valid_session_id(request.session_id)
    return Reply(200, data(await services.presence.listing(session_id)))


def _change(request: Request, services: Services) -> perform.Change:
    """The change that is asked for. Raises PayloadTooLarge and UnsupportedMediaType."""
    headers = request.headers
    key = headers.get("Idempotency-Key")
    return perform.Change(
        access=request.access,
        request_id=request.request_id,
        method=request.method,
        path=request.path,
        body=request.read_body() if request.method == "POST" else b"",
        idempotency_key=key,
        idempotency_ttl=headers.get("Idempotency-TTL"),
        received_at_s=None if key is None else request.received_at_s(),
        tags=parameters.tags(headers.get("If-Match")),
        admission=None if request.charge is None else request.admit,
        rates=None if request.access.is_trusted else services.rates,
    )


def _reply_to(applied: Applied) -> Reply:
    headers = {}
    if applied.tag:
        headers["ETag"] = applied.tag
    if applied.status == 201:
        headers["Location"] = f"/v1/sessions/{applied.session_id}"
    if applied.is_replayed:
        headers["Idempotent-Replayed"] = "true"
    body = b"" if applied.status == 204 else data(applied.answer)
    return Reply(applied.status, body, headers, rate_limit=applied.rate_limit)
