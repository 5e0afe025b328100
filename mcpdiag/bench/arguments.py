"""Arguments made from a tool's JSON schema: the smallest that satisfy it, the same at every run. Only on request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEPTH = 16


def example(schema: Mapping[str, Any]) -> dict[str, Any]:
    """An object with the required properties of an `inputSchema`."""
    made = _value(schema, schema, DEPTH)
    return made if isinstance(made, dict) else {}


def _value(schema: Any, root: Mapping[str, Any], depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth == 0:
        return {}
    for known in ("const", "default"):
        if known in schema:
            return schema[known]
    for many in ("examples", "enum"):
        if isinstance(schema.get(many), list) and schema[many]:
            return schema[many][0]
    if isinstance(reference := schema.get("$ref"), str):
        return _value(_resolve(reference, root), root, depth - 1)
    for either in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(either), list) and schema[either]:
            return _value({**schema[either][0], **_without(schema, either)}, root, depth - 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or (kind is None and "properties" in schema):
        properties = schema.get("properties") or {}
        wanted = [name for name in schema.get("required") or () if isinstance(name, str)]
        return {name: _value(properties.get(name, {"type": "string"}), root, depth - 1) for name in wanted}
    if kind == "array":
        return [
            _value(schema.get("items", {}), root, depth - 1) for _ in range(int(schema.get("minItems", 0)))
        ]
    if kind in ("integer", "number"):
        return _number(schema, whole=kind == "integer")
    if kind == "boolean":
        return False
    if kind == "null":
        return None
    return _text(schema)


def _number(schema: Mapping[str, Any], *, whole: bool) -> int | float:
    low, high = schema.get("minimum"), schema.get("maximum")
    if (least := schema.get("exclusiveMinimum")) is not None:
        low = least + 1 if whole else least + 1e-3
    if low is None:
        low = 1 if high is None or high >= 1 else high
    if step := schema.get("multipleOf"):
        low = -(-low // step) * step
    return int(low) if whole else low


def _text(schema: Mapping[str, Any]) -> str:
    shaped = {
        "date": "2026-01-01",
        "date-time": "2026-01-01T00:00:00Z",
        "uri": "https://example.com/",
        "email": "someone@example.com",
        "uuid": "00000000-0000-4000-8000-000000000000",
    }
    text = shaped.get(str(schema.get("format")), "text")
    text = text.ljust(int(schema.get("minLength", 0)), "x")
    return text[: int(schema["maxLength"])] if "maxLength" in schema else text


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    node: Any = root
    for part in reference.removeprefix("#/").split("/"):
        node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, Mapping) else None
    return node


def _without(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}
