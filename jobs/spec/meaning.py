"""What a person means by a value that is not quite as it should be: taken where there is only one meaning."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from jobs.spec.keys import branches, is_share
from jobs.spec.written import Written, plain


def meant(given: Any, schema: dict[str, Any]) -> Any:
    """`given`, as YAML has it, by the JSON Schema of its key: text without quotes stays text, a key without a value has
    its default, one text or section is a list of one, `1%` is 0.01, `1e6` a whole number, `INT8` is int8."""
    kinds = branches(schema)
    if isinstance(given, dict):
        sections = [kind for kind in kinds if kind.get("type") == "object"]
        if not sections:
            return [meant(given, _items(kinds))] if "object" in _types(_items(kinds)) else plain(given)
        values = {}
        for key, value in given.items():
            name = key.text if isinstance(key, Written) else key
            of_key = _schema_of_key(sections[0], name)
            if of_key is None:
                values[name] = plain(value)
            elif plain(value) is not None or "null" in _types(of_key):
                values[name] = meant(value, of_key)
        return values
    if isinstance(given, list):
        return [meant(item, _items(kinds)) for item in given]
    if isinstance(given, bool):
        given = Written(given, str(given).lower())
    if isinstance(given, Written):
        given = given.value if _is_of(given.value, _types(schema)) else given.text
    return _text_meant(given, kinds) if isinstance(given, str) else given


def _text_meant(text: str, kinds: list[dict[str, Any]]) -> Any:
    if any(kind.get("type") == "string" and not {"const", "enum"} & set(kind) for kind in kinds):
        return text
    names = [name for kind in kinds for name in kind.get("enum", [kind["const"]] if "const" in kind else [])]
    if text.lower() in names:
        return text.lower()
    with suppress(ValueError, OverflowError):
        if any(map(is_share, kinds)) and (percent := re.fullmatch(r"\s*([\d.]+)\s*%\s*", text)):
            return round(float(percent[1]) / 100, 12)
        if any(kind.get("type") == "integer" for kind in kinds) and float(text).is_integer():
            return int(float(text))
    # A comma may part two names: which is meant, is not ours to say.
    return [text] if "string" in _types(_items(kinds)) and "," not in text else text


def _schema_of_key(section: dict[str, Any], name: Any) -> dict[str, Any] | None:
    """None where any value may be."""
    patterns = section.get("patternProperties", {}).values()
    found = section.get("properties", {}).get(name) or next(iter(patterns), section.get("additionalProperties"))
    return found if isinstance(found, dict) else None


def _items(kinds: list[dict[str, Any]]) -> dict[str, Any]:
    """The schema of what a list here holds."""
    return next((kind["items"] for kind in kinds if "items" in kind), {})


def _types(schema: dict[str, Any]) -> set[str | None]:
    return {kind.get("type") for kind in branches(schema)}


def _is_of(value: Any, types: set[str | None]) -> bool:
    if value is None:
        return "null" in types or None in types
    if isinstance(value, bool):
        return "boolean" in types
    return isinstance(value, int | float) and bool(types & {"integer", "number"})
