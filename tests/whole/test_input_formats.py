"""Phones' pictures through whole runs: asked for, not asked for, and where the library is not installed."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import main
from tests.support.digits_job import Digits, predictions
from workers.image import plugins

pillow_heif = pytest.importorskip("pillow_heif")

ROWS = 200
WriteSpec = Callable[[dict[str, Any]], str]

pytestmark = pytest.mark.usefixtures("decodes_here")


def heif_of(jpeg: bytes) -> bytes | None:
    """None for one of those that are damaged."""
    out = io.BytesIO()
    with suppress(OSError):
        pillow_heif.from_pillow(Image.open(io.BytesIO(jpeg))).save(out, quality=90)
    return out.getvalue() or None


@pytest.fixture(scope="module")
def phones(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the digits, as HEIF."""
    table = pq.read_table(sorted(digits.images.glob("*.parquet"))[0])
    images = pa.array([heif_of(cell.as_py() or b"") for cell in table["image"]], pa.binary())
    table = table.set_column(table.schema.get_field_index("image"), "image", images)
    folder = tmp_path_factory.mktemp("phones")
    pq.write_table(table.filter(images.is_valid()).slice(0, ROWS), folder / "a.parquet")
    return folder


def test_what_is_asked_for_is_scored_and_any_job_uses_the_bundle(
    digits: Digits, phones: Path, tmp_path: Path, write_spec: WriteSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = tmp_path / "sheet.html"
    gate = {"gate__rows": 60, "gate__max_top1_drop": 0.05}
    spec = write_spec(digits.spec(tmp_path / "out", input__uri=str(phones), input__formats=["jpeg", "heif"], **gate))
    assert main(["run", spec, "--pool=local"]) == 0
    table = predictions(tmp_path / "out")
    assert table.num_rows == ROWS
    assert table["error_code"].null_count == ROWS
    right = sum(str(a) == str(b) for a, b in zip(table["label"].to_pylist(), table["digit"].to_pylist(), strict=True))
    assert right > 0.9 * ROWS
    assert main(["sample", spec, "-n", "4", f"--html={sheet}"]) == 0
    assert sheet.read_text().count("data:image/jpeg") == 4
    # The bundle was made of HEIF; a job of the same model needs no library for that.
    monkeypatch.setitem(plugins.MODULES, "heif", "no_such_library")
    own = write_spec(digits.spec(tmp_path / "out", **gate))
    assert main(["run", own, "--pool=local"]) == 0


def test_what_is_not_asked_for_is_told_with_the_line_to_write(
    digits: Digits, phones: Path, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(digits.spec(tmp_path / "out", input__uri=str(phones)))
    assert main(["run", spec, "--pool=local"]) == 2
    said = capsys.readouterr().err
    assert "unsupported_format" in said
    assert "write `formats: [jpeg, png, gif, webp, bmp, tiff, avif, heif]` below input" in said
    assert "pip install 'stint[heif]'" in said


def test_a_library_that_is_not_installed_is_told_before_anything_is_scored(
    digits: Digits,
    phones: Path,
    tmp_path: Path,
    write_spec: WriteSpec,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(plugins.MODULES, "heif", "no_such_library")
    spec = write_spec(digits.spec(tmp_path / "out", input__uri=str(phones), input__formats=["heif"]))
    assert main(["run", spec, "--pool=local"]) == 2
    assert "pip install 'stint[heif]' on the driver and on the workers" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("**/*.parquet"))
