"""Predictions of images that a table has copied are found by the hash of the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.image.errors import BadImage, ErrorCode
from workers.score import copies
from workers.score.copies import Copies, image_hash
from workers.storage.store import open_store


def write(folder: Path, key: str, first: int, rows: int, bad: tuple[int, ...] = ()) -> None:
    numbers = range(first, first + rows)
    table = pa.table(
        {
            "image_hash": pa.array([image_hash(b"%d" % n) for n in numbers], pa.binary()),
            "score": pa.array([None if n in bad else n / 100 for n in numbers], pa.float32()),
            "error_code": pa.array(["truncated" if n in bad else None for n in numbers], pa.string()),
        }
    )
    pq.write_table(table, folder / key)


def found(some: Copies, images: list[bytes | BadImage]) -> dict[int, float]:
    numbers, table = some.find([image_hash(image) for image in images])
    scores = table["score"].to_pylist() if numbers else []
    return dict(zip(numbers, np.round(scores, 2).tolist(), strict=True))


def test_good_predictions_are_found_by_the_image_wherever_they_lie(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path, f"{number}.parquet", 10 * number, 10, bad=(3, 55))
    keys = [f"{number}.parquet" for number in (*range(12), 77)]  # the last one is yet to be written
    some = Copies(open_store(str(tmp_path)), keys, ["score"])
    images: list[bytes | BadImage] = [b"%d" % n for n in (119, 3, 0, 55, 56, 120, 7)]
    assert found(some, images) == pytest.approx({0: 1.19, 2: 0.0, 4: 0.56, 6: 0.07})
    assert found(some, [BadImage(ErrorCode.NULL, "null"), b"5"]) == pytest.approx({1: 0.05})
    assert found(some, []) == {}
    assert len(found(some, [b"%d" % n for n in range(119, -1, -1)])) == 118


def test_without_any_object_nothing_is_found(tmp_path: Path) -> None:
    assert found(Copies(open_store(str(tmp_path)), [], ["score"]), [b"1"]) == {}


def test_of_more_rows_than_are_held_the_latest_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        write(tmp_path, f"{number}.parquet", 10 * number, 10)
    monkeypatch.setattr(copies, "MOST_COPIED", 15)
    some = Copies(open_store(str(tmp_path)), [f"{number}.parquet" for number in range(3)], ["score"])
    assert sorted(found(some, [b"%d" % n for n in range(30)])) == [*range(10, 15), *range(20, 30)]


def test_images_whose_hashes_begin_alike_are_not_taken_for_each_other(tmp_path: Path) -> None:
    write(tmp_path, "0.parquet", 0, 3)
    some = Copies(open_store(str(tmp_path)), ["0.parquet"], ["score"])
    [whole] = [image_hash(b"1")]
    assert whole is not None
    assert some.find([whole[:8] + b"another!"])[0] == []
    assert some.find([whole])[0] == [0]
