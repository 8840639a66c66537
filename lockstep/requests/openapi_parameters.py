"""The parameters of the routes, for /openapi.json, with the limits of what reads them."""

from lockstep.requests import kinds, parameters
from lockstep.requests.json_schema import STRING, UUID_PATTERN, Schema, anchored, schema_of
from lockstep.rules.state import Status


def parameters_by_name() -> dict[str, Schema]:
    whole = {"type": "integer", "minimum": 0, "maximum": kinds.MAX_INT}
    tags = {"type": "string", "examples": ['"0lquvc000k3f9-3-Zk8w_q1B"']}
    return {
        "Id": parameter(
            "path", "id", {"type": "string", "pattern": UUID_PATTERN}, "The session", required=True
        ),
        "Status": parameter(
            "query", "status", schema_of(kinds.Choice(Status)), "Only sessions of this status"
        ),
        "Limit": parameter(
            "query",
            "limit",
            {
                "type": "integer",
                "minimum": 1,
                "maximum": parameters.MAX_PAGE,
                "default": parameters.DEFAULT_PAGE,
            },
            "So many at most",
        ),
        "Cursor": parameter(
            "query",
            "cursor",
            {"type": "string", "pattern": anchored(parameters.CURSOR.pattern)},
            "The next_cursor of the page before",
        ),
        "Since": parameter("query", "since", whole, "Only what came after this version"),
        "Epoch": parameter(
            "query",
            "epoch",
            {"type": "string", "pattern": anchored(parameters.EPOCH.pattern)},
            "Which creation of the session is meant",
        ),
        "LastEventIdHeader": parameter(
            "header",
            "Last-Event-ID",
            STRING,
            "The id of the last event; what was missed since then comes first",
        ),
        "LastEventId": parameter(
            "query", "lastEventId", STRING, "The same, for who cannot send headers; the header counts"
        ),
        "Token": parameter(
            "query", "token", STRING, "Where the server has keys, for who cannot send headers"
        ),
        "IfMatch": parameter(
            "header",
            "If-Match",
            tags,
            "Only if the state still is one of these; a tag may end after the version",
        ),
        "IfNoneMatch": parameter("header", "If-None-Match", tags, "Only if the state is none of these"),
        "IdempotencyKey": parameter(
            "header",
            "Idempotency-Key",
            {
                "type": "string",
                "minLength": 1,
                "maxLength": parameters.MAX_KEY_LENGTH,
                "pattern": "^[!-~]([ -~]*[!-~])?$",
            },
            "The request is done once, however often it is sent with this key",
        ),
        "IdempotencyTtl": parameter(
            "header",
            "Idempotency-TTL",
            {
                "type": "integer",
                "minimum": 1,
                "maximum": parameters.MAX_KEPT_S,
                "default": parameters.MAX_KEPT_S,
            },
            f"For so many seconds, and {parameters.MIN_KEPT_S} at least, if it has a key",
        ),
    }


def parameter(where: str, name: str, schema: Schema, description: str, *, required: bool = False) -> Schema:
    of_request = {"name": name, "in": where, "description": description, "schema": schema}
    return of_request | {"required": True} if required else of_request
