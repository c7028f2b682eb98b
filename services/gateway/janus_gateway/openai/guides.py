"""``response_format`` and the ``guided_*`` extensions as a janus.v1.Guide. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from janus_runtime.errors import InvalidArgument
from janus_wire.v1 import common_pb2

_FORMATS = (
    '{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"name", "schema"}}'
)


def guide_of(fields: Mapping[str, Any]) -> tuple[common_pb2.Guide | None, str]:
    """The guide that a body asks for, and the field that says so. InvalidArgument for several, or nonsense.

    ``fields``: of the body; ``guided_regex`` and ``guided_grammar`` are strings, ``guided_choice`` strings.
    """
    found: list[tuple[common_pb2.Guide, str]] = []
    if fields.get("response_format") is not None:
        chosen = _response_format(fields["response_format"])
        if chosen is not None:
            found.append(chosen)
    if fields.get("guided_json") is not None:
        schema = fields["guided_json"]
        text = schema if isinstance(schema, str) else _schema(schema, "guided_json")
        found.append((common_pb2.Guide(json_schema=text), "guided_json"))
    if fields.get("guided_regex") is not None:
        found.append((common_pb2.Guide(regex=fields["guided_regex"]), "guided_regex"))
    if fields.get("guided_grammar") is not None:
        found.append((common_pb2.Guide(grammar=fields["guided_grammar"]), "guided_grammar"))
    if fields.get("guided_choice") is not None:
        choice = common_pb2.TextChoices(texts=fields["guided_choice"])
        found.append((common_pb2.Guide(choice=choice), "guided_choice"))
    if len(found) > 1:
        raise InvalidArgument(
            f"contradicts {found[0][1]}", field=found[1][1].split(".")[0], allowed="one guide for an answer"
        )
    return found[0] if found else (None, "")


def _response_format(value: Any) -> tuple[common_pb2.Guide, str] | None:
    kind = value.get("type") if isinstance(value, dict) else value
    if kind == "text":
        return None
    if kind == "json_object":
        return common_pb2.Guide(json_object=True), "response_format"
    if kind != "json_schema":
        raise InvalidArgument(
            "has an unknown type", field="response_format.type", value=kind, allowed=_FORMATS
        )
    inner = value.get("json_schema")
    if not isinstance(inner, dict) or "schema" not in inner:
        raise InvalidArgument(
            "has no schema", field="response_format.json_schema", value=inner, allowed=_FORMATS
        )
    field = "response_format.json_schema.schema"
    return common_pb2.Guide(json_schema=_schema(inner["schema"], field)), field


def _schema(value: Any, field: str) -> str:
    if not isinstance(value, dict | bool):
        raise InvalidArgument(
            "is no JSON Schema", field=field, value=value, allowed="an object, true or false"
        )
    return json.dumps(value, ensure_ascii=False)
