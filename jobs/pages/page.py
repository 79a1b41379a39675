"""Pages for a person: templates of `jobs/pages/templates/` filled with values, each a single file that loads nothing.

Everything that comes from data is escaped, because templates are filled with autoescaping on; what is HTML on purpose
(the charts) comes as `markupsafe.Markup`. A name that a template uses and nobody gave is an error.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jobs.progress import format
from workers.counted import counted
from workers.redaction import redacted

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """The page of `jobs/pages/templates/<template>`; pages extend `base.html.j2`, which says what it offers them."""
    # A file name need not be UTF-8, and a page that cannot be written tells nothing.
    return fragment(template, **values).encode("utf-8", "replace").decode()


def fragment(template: str, **values: Any) -> Markup:
    """A piece of a page."""
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("number", "money", "significant", "percent", "points", "seconds", "size", "moment")
    environment.filters |= {name: getattr(format, name) for name in names} | {"redacted": redacted, "counted": counted}
    return environment
