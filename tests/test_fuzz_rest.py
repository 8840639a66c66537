"""Requests made from /openapi.json, good and bad: what is answered is what it says, and never a 5xx."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from lockstep.requests import openapi
from lockstep.wire.heads import UUID
from tests.support.fuzzing import examples
from tests.support.processes import ServerProcess
from tests.support.sockets import command, create

# Not asked: whether all that fits the schema is taken (some rules are between fields, and a command needs a
# status); whether all that does not is refused (headers that nobody knows are not, null is as good as no
# body; what a body may say is tested limit by limit in test_openapi.py); and what needs a login.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    unsupported_method,
]
# A WebSocket is no answer, a stream one without end, and what a process may leave out no route.
schema = schemathesis.openapi.from_dict(openapi.document()).exclude(
    path=["/ws", "/metrics", "/v1/sessions/{id}/stream"]
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    process = ServerProcess("--log-level=warning")
    yield process
    assert process.stop() == 0
    assert [line for line in process.log_lines if '"error"' in line or "Traceback" in line] == []


@pytest.fixture(scope="module")
def session_id(server: ServerProcess) -> str:
    async def running() -> str:
        session_id: str = (await create(server, seats=3))["session_id"]
        await command(server, session_id, "start")
        return session_id

    return asyncio.run(running())


@schema.parametrize()
@examples(8)
def test_what_is_asked_is_answered_as_the_document_says(
    case: schemathesis.Case, server: ServerProcess, session_id: str
) -> None:
    asked: Any = case.path_parameters.get("id") if case.path_parameters else None
    if isinstance(asked, str) and UUID.fullmatch(asked.lower()) and asked[-1] in "01234567":
        case.path_parameters["id"] = session_id  # a session that is there, half of the time
    case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=10)
