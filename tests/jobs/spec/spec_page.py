"""`docs/SPEC.md`, from the spec's own models: `make spec-page`. A test holds the page to them."""

from __future__ import annotations

from pathlib import Path

from jobs.spec.keys import Key, flow, key_at, keys_below
from jobs.spec.schema import JobSpec

PAGE = Path(__file__).parents[3] / "docs" / "SPEC.md"
_BEGINNING = """\
# The spec, key by key

Made by `make spec-page` from the models that check a spec; `stint schema` prints the same for editors. A key in
**bold** has to be there. Text needs no quotes, `1%` is 0.01, one value stands for a list of one, and a key without a
value has its default. On the command line `--set section.key=value` goes before the file.
"""


def spec_page() -> str:
    """The page as it should be."""
    top, _ = key_at(())
    name, *sections = keys_below(top)
    return "\n".join([_BEGINNING, *_table([name]), *(line for section in sections for line in _section(section, 2))])


def _section(section: Key, level: int) -> list[str]:
    keys = keys_below(section)
    inner = [key for key in keys if key.is_section]
    lines = ["", f"{'#' * level} `{section.path}`", "", section.schema.get("description", "").replace("\n", " "), ""]
    return [*lines, *_table(keys), *(line for key in inner for line in _section(key, level + 1))]


def _table(keys: list[Key]) -> list[str]:
    return [
        "| key | what it may be | unit | default | example | meaning |",
        "|---|---|---|---|---|---|",
        *map(_row, keys),
    ]


def _row(key: Key) -> str:
    default = key.schema.get("default")
    if key.required:
        default = "none: has to be there"
    elif key.is_section and not isinstance(default, float):
        default = "see below"
    else:
        default = "none" if default in (None, "", [], {}) else f"`{flow(default)}`"
    name = f"**`{key.name}`**" if key.required else f"`{key.name}`"
    meaning = " ".join(key.schema.get("description", "").split()).replace("struct<", "struct\\<")
    cells = (name, key.wanted, key.unit, default, key.line, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(spec_page() + "\n")
    print(f"{PAGE}: {len(JobSpec.model_fields)} sections and keys at the top")
