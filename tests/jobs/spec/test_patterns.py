"""Names with wildcards: what they stand for, alike for Python and for Arrow."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from jobs.spec.patterns import covering, covers


@pytest.mark.parametrize(
    ("pattern", "path", "covered"),
    [
        ("/in/[a-c]*.jpg", "/in/b1.jpg", True),
        ("/in/[!a-c]*.jpg", "/in/b1.jpg", False),
        ("/in/[z-a]*.jpg", "/in/[z-a]1.jpg", True),
        ("/in/[z-a]*.jpg", "/in/b1.jpg", False),
        ("/in/[2026-03-01]", "/in/[2026-03-01]/a.jpg", True),
        ("/in/[[:alpha:]]", "/in/a", False),
        ("/in/[[:alpha:]]", "/in/[]", True),
        ("/in/[a&&b]", "/in/&/x", True),
        ("/in/[^]", "/in/^", True),
        ("day = ANY(['2026-03-01'])", "/in/2026-03-01", False),
    ],
)
def test_brackets_that_are_no_class_are_part_of_a_name(pattern: str, path: str, covered: bool) -> None:
    assert covers(pattern, path) is covered
    assert pc.match_substring_regex(pa.array([path]), f"^{covering(pattern)}$").to_pylist() == [covered]
