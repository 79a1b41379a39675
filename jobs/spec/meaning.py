"""What a person means by a value that is not quite as it should be: taken where there is only one meaning."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from jobs.spec.keys import branches, is_share
from jobs.spec.written import Written, plain


def meant(given: Any, schema: dict[str, Any]) -> Any:
    """`given`, as YAML has it, by the JSON Schema of its key: text without quotes stays text, a key without a value has
    its default, one text or section is a list of one, `1%` is 0.01, `1e6` a whole number, `INT8` is int8."""
    kinds = branches(schema)
    types = {kind.get("type") for kind in kinds}
    if isinstance(given, dict):
        sections = [kind for kind in kinds if kind.get("type") == "object"]
        if not sections:
            return [meant(given, _items(kinds))] if "object" in _types_of_items(kinds) else plain(given)
        known: dict[str, Any] = sections[0].get("properties", {})
        others = sections[0].get("additionalProperties")
        of_others = next(
            iter(sections[0].get("patternProperties", {}).values()), others if isinstance(others, dict) else None
        )
        values = {key.text if isinstance(key, Written) else key: value for key, value in given.items()}
        return {
            name: plain(value) if schema is None else meant(value, schema)
            for name, value in values.items()
            for schema in [known.get(name, of_others)]
            if plain(value) is not None or schema is None or _is_none(schema)
        }
    if isinstance(given, list):
        return [meant(item, _items(kinds)) for item in given]
    if isinstance(given, bool):
        given = Written(given, str(given).lower())
    if isinstance(given, Written):
        given = given.value if _is_of(given.value, types) else given.text
    return _text_meant(given, kinds) if isinstance(given, str) else given


def _text_meant(text: str, kinds: list[dict[str, Any]]) -> Any:
    free = any(kind.get("type") == "string" and not {"const", "enum"} & set(kind) for kind in kinds)
    if free:
        return text
    names = [name for kind in kinds for name in kind.get("enum", [kind["const"]] if "const" in kind else [])]
    if text.lower() in names:
        return text.lower()
    if any(map(is_share, kinds)) and (percent := re.fullmatch(r"\s*([\d.]+)\s*%\s*", text)):
        return _number(float, percent[1], text, lambda share: round(share / 100, 12))
    if any(kind.get("type") == "integer" for kind in kinds):
        return _number(float, text, text, lambda number: int(number) if number.is_integer() else text)
    # A comma may part two names: which is meant, is not ours to say.
    return [text] if "string" in _types_of_items(kinds) and "," not in text else text


def _number(kind: Callable[[str], float], text: str, otherwise: str, then: Callable[[float], Any]) -> Any:
    try:
        return then(kind(text))
    except (ValueError, OverflowError):
        return otherwise


def _items(kinds: list[dict[str, Any]]) -> dict[str, Any]:
    """The schema of what a list here holds."""
    return next((kind["items"] for kind in kinds if "items" in kind), {})


def _types_of_items(kinds: list[dict[str, Any]]) -> set[str | None]:
    return {kind.get("type") for kind in branches(_items(kinds))}


def _is_none(schema: dict[str, Any]) -> bool:
    """Whether null is a value of such a key."""
    return any(kind.get("type") == "null" for kind in branches(schema))


def _is_of(value: Any, types: set[str | None]) -> bool:
    if value is None:
        return "null" in types or None in types
    if isinstance(value, bool):
        return "boolean" in types
    return isinstance(value, int | float) and bool(types & {"integer", "number"})
