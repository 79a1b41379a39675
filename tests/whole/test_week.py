"""A first week, as a person lives it: what comes, what goes wrong, what is done about it. After each step the exit code
is the right one, and terminal, report, page, history and `verify` tell of the same rows."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.cli import main
from tests.support.digits_job import Digits
from tests.whole.nights import ROWS, Nights, WriteSpec, check_figures, without_images

pytestmark = pytest.mark.usefixtures("decodes_here")

NET = """
from week_layers import SURER, Times
from workers.digits import digits_cnn

def build():
    network = digits_cnn()
    network.append(Times(SURER))
    return network
"""
LAYERS = """
from torch import nn

SURER = 1.0

class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, logits):
        return logits * self.factor
"""


class OwnNetwork:
    """`week_net.py` and what it imports, each edit of which a new process would find."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder, self._patch = folder, patch
        folder.mkdir()
        patch.syspath_prepend(folder)
        (folder / "week_net.py").write_text(NET)
        self.edit(LAYERS)

    def edit(self, layers: str) -> None:
        (self._folder / "week_layers.py").write_text(layers)
        for name in ("week_net", "week_layers"):
            self._patch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def nights(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> Nights:
    return Nights(quantized_digits, tmp_path, write_spec, capsys)


def test_a_week(nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two edits in one second would be one
    network = OwnNetwork(tmp_path / "code", monkeypatch)
    nights.raw["model"]["arch"] = "week_net:build"
    nights.raw["limits"]["bad_rows"] = {"share": 0.2, "at_least": 5}
    nights.raw["schedule"] = {"on_new_model": "ask"}
    nights.spec = nights.write_spec(nights.raw)

    # Sunday: a first folder.
    nights.put("2026-03-01/a.parquet")
    nights.put("2026-03-01/b.parquet")
    assert "complete: 80 rows" in nights.run(1)
    report = check_figures(nights, 1)
    assert (report["data_set_plans"], report["labelled_rows"]) == (1, report["rows_ok"])
    first = nights.check_readers().root

    # Monday: one file of the delivery holds no images. The plan stays open, and readers see nothing of it.
    bad = nights.put("2026-03-02/bad.parquet")
    without_images(bad)
    nights.put("2026-03-02/good.parquet")
    hidden = {name: nights.expected.pop(name) for name in ("2026-03-02/bad.parquet", "2026-03-02/good.parquet")}
    assert "plan 2 (2026-03-02)" in nights.run(2, code=3)
    report = check_figures(nights, 2, code=1)
    assert report["rows_bad"] >= ROWS
    nights.check_readers()

    # It is cleared: the file is taken away, and the plan closes by itself.
    bad.unlink()
    assert "its bad rows are replaced or taken away: done" in nights.run(2)
    check_figures(nights, 2)
    nights.expected |= hidden
    nights.check_readers()

    # Tuesday: a file for Monday comes a day late.
    nights.put("2026-03-02/late.parquet")
    nights.put("2026-03-03/a.parquet")
    assert "2 new with 80 rows" in nights.run(3)
    check_figures(nights, 3)
    nights.check_readers()

    # Wednesday: a comment in the network's code is no change; an edit of what it imports is one, and the night asks.
    network.edit(f"# A comment.\n{LAYERS}")
    nights.put("2026-03-04/a.parquet")
    assert "complete: 40 rows" in nights.run(4)
    assert check_figures(nights, 4)["root"] == f"{first}"
    network.edit(LAYERS.replace("SURER = 1.0", "SURER = 1.25"))
    nights.put("2026-03-04/b.parquet")
    late = nights.expected.pop("2026-03-04/b.parquet")
    asked = nights.run(4, code=2)
    assert "changed: code (week_layers)" in asked
    assert check_figures(nights, 4, code=1)["error"].splitlines()[0] in asked
    nights.check_readers()

    # Thursday: it was meant. The new model scores what is there; readers stay until somebody promotes it.
    nights.raw["schedule"] = {"on_new_model": "score"}
    nights.spec = nights.write_spec(nights.raw)
    said = nights.run(4)
    assert f"readers go on with {first}, until `stint promote` moves them" in said
    second = check_figures(nights, 4)["root"]
    assert second != first
    nights.check_readers()
    promote = ["promote", nights.spec, "--as-of", "2026-03-04"]
    assert main(promote) == 1
    assert "next: score them with `stint run SPEC --backfill FROM..TO`" in nights.capsys.readouterr().err
    assert main(["run", nights.spec, "--pool=local", "--backfill", "2026-03-01..2026-03-04"]) == 0
    check_figures(nights, 4)
    assert main(promote) == 1  # of the bad delivery nothing is left but what the first model said
    said = nights.capsys.readouterr().err
    assert f"no predictions for 1 file that {first} has, as {bad}\nnext: score them" in said
    assert "promote with --allow-fewer" in said
    assert main([*promote, "--allow-fewer"]) == 0
    nights.capsys.readouterr()
    nights.expected["2026-03-04/b.parquet"] = late
    del nights.expected["2026-03-02/bad.parquet"]  # which the second model never saw
    assert nights.check_readers().root == second

    # Friday: nothing new. Saturday: nothing, where a delivery was due.
    (tmp_path / "in" / "2026-03-05").mkdir()
    assert "nothing new to score in digits" in nights.run(5)
    check_figures(nights, 5)
    nights.raw["input"]["min_new_rows"] = ROWS
    nights.spec = nights.write_spec(nights.raw)
    assert "0 new rows for 2026-03-06, where input.min_new_rows wants 40: the delivery is missing" in nights.run(
        6, code=1
    )
    check_figures(nights, 6)
    nights.check_readers()


def test_a_day_in_words_is_a_day_and_a_backfill_of_one_day_asks_nothing(nights: Nights) -> None:
    day = datetime.now(UTC).date() - timedelta(1)
    nights.put(f"{day}/a.parquet")
    assert main(["run", nights.spec, "--pool=local", "--as-of", "yesterday"]) == 0
    assert f"..{day}: 1 source, 0 claimed" in nights.capsys.readouterr().err
    nights.change_model(on_new_model="ask")
    assert main(["run", nights.spec, "--pool=local", "--as-of", "yesterday"]) == 2
    assert main(["run", nights.spec, "--pool=local", "--backfill", f"{day}..{day}"]) == 0
    nights.capsys.readouterr()
    nights.check_readers()
