"""What an earlier release scored with a network of the user's own stays where it is, until the network changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.errors import RunFailed
from jobs.ledger.current import roots
from jobs.plan.known_code import known_fingerprints
from jobs.spec.fingerprint import Fingerprints, Identity, identity
from jobs.spec.load import parse_spec
from workers.storage.store import Store, open_store

EARLIER = Fingerprints("b1c1118973702184", "529ffe06519829c5", "model=net-529ffe06519829c5")
"""What the release that looked at the bytes of the module alone made of the network below."""
BYTES = "def net(): ...\n"


class Output:
    """An output with a network in a module beside it."""

    def __init__(self, folder: Path) -> None:
        self.store: Store = open_store(str(folder / "out"))
        self.folder = folder
        self.edit(BYTES)

    def edit(self, text: str, name: str = "my_net_of_old") -> None:
        (self.folder / f"{name}.py").write_text(text)

    def identity(self, weights: str = "w.pth") -> Identity:
        model = {"arch": "my_net_of_old:net", "weights": weights}
        spec = {"name": "n", "input": {"uri": "in/", "keys": ["id"]}, "model": model, "output": {"uri": "out/"}}
        return identity(parse_spec(spec), str.encode)  # a file has its own name for content

    def known(self, weights: str = "w.pth", *, writing: bool = True) -> Fingerprints:
        return known_fingerprints(self.store, self.identity(weights), roots(self.store.url), writing=writing)

    def scored(self, prints: Fingerprints) -> None:
        assert self.store.create(f"{prints.root}/_stint/plans/00000001.stint", b"")

    @property
    def noted(self) -> list[str]:
        return [info.key for info in self.store.list("_stint/code")]


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Output:
    monkeypatch.syspath_prepend(tmp_path)
    return Output(tmp_path)


def test_in_a_new_output_it_is_the_syntax_trees_that_tell(output: Output) -> None:
    assert output.known() == output.identity().fingerprints() != EARLIER
    assert output.noted == []


@pytest.mark.parametrize("there", [f"{EARLIER.root}/_stint/plans/00000001.stint",
                                   f"_stint/bundles/{EARLIER.bundle}/manifest.json"])  # fmt: skip
def test_a_root_or_bundle_of_an_earlier_release_goes_on(output: Output, there: str) -> None:
    assert output.store.create(there, b"")
    assert output.known(writing=False) == EARLIER
    assert output.noted == [], "who only reads writes nothing"
    assert output.known() == EARLIER
    (key,) = output.noted
    assert json.loads(output.store.get(key)) == {"code": output.identity().code.digest}  # type: ignore[union-attr]
    assert output.known() == EARLIER


def test_from_then_on_comments_change_nothing_and_code_does(output: Output) -> None:
    output.scored(EARLIER)
    output.known()
    output.edit(f"# a comment\n{BYTES}")
    assert output.known() == output.known(writing=False) == EARLIER
    output.edit("def net(): return 1\n")
    assert output.known() == output.identity().fingerprints() != EARLIER
    output.edit(BYTES)
    assert output.known() == EARLIER, "what was undone is as it was"


def test_so_does_the_code_of_modules_that_an_earlier_release_did_not_look_at(output: Output) -> None:
    output.edit("import my_layers_of_old\n" + BYTES)
    output.edit("WIDTH = 1\n", "my_layers_of_old")
    code = output.identity().code
    assert code is not None
    earlier = output.identity().fingerprints(code.file)
    output.scored(earlier)
    assert output.known() == earlier
    output.edit("WIDTH = 2\n", "my_layers_of_old")
    assert output.known() == output.known(writing=False) == output.identity().fingerprints() != earlier


def test_a_change_beside_the_code_goes_on_under_the_root_that_it_has(output: Output) -> None:
    output.scored(EARLIER)
    others = output.known("other.pth")
    assert others == output.identity("other.pth").fingerprints()
    output.scored(others)
    assert output.known() == EARLIER
    assert output.known("other.pth") == others, "also once the code goes under its earlier digest here"


def test_of_two_runs_that_find_the_earlier_root_at_once_one_says_which_code_it_was(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    output.scored(EARLIER)
    create = output.store.create

    def second(key: str, data: bytes) -> bool:
        monkeypatch.undo()
        assert create(key, json.dumps({"code": "of another run, on another machine"}).encode())
        return create(key, data)

    identity = output.identity()
    monkeypatch.setattr(output.store, "create", second)
    found = known_fingerprints(output.store, identity, [EARLIER.root], writing=True)
    assert found == identity.fingerprints() != EARLIER


@pytest.mark.parametrize("record", [b"", b'{"code": "5', b"[]", b"null", b"{}", b"\xff\xfe"])
def test_what_is_no_record_is_passed_over_unless_a_root_that_is_there_depends_on_it(
    output: Output, record: bytes
) -> None:
    assert output.store.create("_stint/code/ffffffffffffffff.json", record)
    output.scored(EARLIER)
    assert output.known() == EARLIER
    (key,) = set(output.noted) - {"_stint/code/ffffffffffffffff.json"}
    (output.folder / "out" / key).write_bytes(record)
    with pytest.raises(RunFailed, match=f"{key} is damaged: it says which code has scored {EARLIER.root}"):
        output.known()
    (output.folder / "out" / key).unlink()
    assert output.known() == output.known(writing=False) == EARLIER
    assert output.known("other.pth") == output.identity("other.pth").fingerprints()


def test_a_root_goes_on_under_another_name_too(output: Output) -> None:
    assert output.store.create(f"{EARLIER.root.replace('=net-', '=shop-')}/_stint/plans/00000001.stint", b"")
    assert output.known() == EARLIER
