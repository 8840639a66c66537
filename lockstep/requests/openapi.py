"""The contract for machines: an OpenAPI 3.1 document, whose limits are those of validation itself."""

from typing import Any

from lockstep import __version__
from lockstep.requests.openapi_answers import headers_by_name
from lockstep.requests.openapi_parameters import parameters_by_name
from lockstep.requests.openapi_paths import paths, virtual_time
from lockstep.requests.schemas import schemas


def document(*, has_virtual_time: bool = False) -> dict[str, Any]:
    """That of a server whose time stands still until it is told, or of one where it passes by itself."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Lockstep",
            "version": __version__,
            "description": "Shared session clocks and session state, identical on every screen. A client"
            " follows a session by the WebSocket /ws; what is said there is described in /asyncapi.json."
            " In a body, null means absent. Every route answers OPTIONS.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [{}],
        "paths": paths() | (virtual_time() if has_virtual_time else {}),
        "components": {
            "schemas": schemas(),
            "parameters": parameters_by_name(),
            "headers": headers_by_name(),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "Where the server has keys; without them nobody is asked. An operation"
                    " names the least `scope` that will do: view, play, control or admin; each includes those"
                    " before it.",
                }
            },
        },
    }
