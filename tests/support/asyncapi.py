"""/asyncapi.json as a judge: is this message one that a channel of it has?"""

import json
from typing import Any

import jsonschema_rs

from lockstep.requests import asyncapi
from tests.support.processes import ROOT

DOCUMENT: dict[str, Any] = json.loads(json.dumps(asyncapi.document()))
OFFICIAL: dict[str, Any] = json.loads((ROOT / "tests" / "asyncapi" / "schema-3.0.0.json").read_text())
"""The JSON Schema of AsyncAPI 3.0.0 documents, as the AsyncAPI Initiative publishes it."""


def complaints(document: Any) -> list[str]:
    """What is wrong with an AsyncAPI document."""
    return [str(error) for error in jsonschema_rs.validator_for(OFFICIAL).iter_errors(document)]


def _validator(name: str) -> jsonschema_rs.Validator:
    payload = DOCUMENT["components"]["messages"][name]["payload"]
    return jsonschema_rs.Draft7Validator(
        {"allOf": [payload], "components": DOCUMENT["components"]}, validate_formats=True
    )


_VALIDATORS = {name: _validator(name) for name in DOCUMENT["components"]["messages"]}


def faults(channel: str, message: Any) -> list[str]:
    """What is wrong with a message of v1 or v2, by the schema of its type."""
    name = f"{channel}.{message['type']}" if isinstance(message, dict) and "type" in message else ""
    if name not in _VALIDATORS:
        return [f"{name or message!r} is in no channel"]
    return [f"{error.instance_path}: {error}" for error in _VALIDATORS[name].iter_errors(message)]
