"""The spec: what is refused, with which words, and what is filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.errors import SpecError
from jobs.spec.load import load_spec, parse_spec
from jobs.spec.schema import JobSpec

CONF = Path(__file__).parents[3] / "conf"


def raw(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "name": "job",
        "input": {"uri": "data/{as_of}"},
        "model": {"arch": "torchvision/resnet18", "weights": "DEFAULT"},
        "output": {"uri": "out/{as_of}"},
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            spec.setdefault(section, {})[key] = value
        else:
            spec[section] = value
    return spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input__imge": "x"}, r"unknown key 'input.imge': did you mean 'image'\?"),
        ({"workers__cpu": 2}, r"unknown key 'workers.cpu': did you mean 'cpus'\?"),
        ({"model__preprocess": {"resise": 3}}, r"unknown key 'model.preprocess.resise': did you mean 'resize'\?"),
        ({"output__zzzz": 1}, r"unknown key 'output.zzzz': valid here: uri, topk, single_writer"),
        ({"model__arch": "resnet50"}, r"did you mean torchvision/resnet50\?"),
        (
            {"limits__bad_rows": {"share": 0.1, "atleast": 3}},
            r"key 'limits.bad_rows.atleast': did you mean 'at_least'\?",
        ),
        ({"limits__gone_rows": {"at_least": 3}}, r"'limits.gone_rows.share' is missing"),
        ({"workers__min": 9, "workers__max": 3}, r"workers.min 9 is above workers.max 3"),
        ({"input__keys": ["score"]}, r"score is a name that Stint uses in its output"),
        ({"input__keys": ["plan"]}, r"plan is a name that Stint uses in its output"),
        ({"input__keys": ["a", "a"]}, r"named twice"),
        ({"input__keys": ["image"]}, r"'image' is the image itself"),
        ({"input__keys": ["id"], "input__format": "images"}, r"image files have no columns"),
        ({"model__task": "embed", "gate__labels_column": "x"}, r"embeddings have no classes"),
        ({"input__uri": ""}, r"input: an empty path; write \. for the working directory"),
        ({"input__uri": ["data/", ""]}, r"an empty path"),
        ({"input": {"manifest": ""}}, r"an empty path"),
        ({"input__days": 10**9}, r"input.days: .* less than or equal to 3660"),
        ({"input__format": "webdataset", "input__image": "jpg;png", "input__keys": ["JPG"]}, r"'JPG' is the image"),
        ({"input__format": "webdataset", "input__image": ";"}, r"';' names no extension"),
        ({"input__uri": []}, r"exactly one of uri and manifest is wanted"),
        ({"input__manifest": "list.txt"}, r"exactly one of uri and manifest is wanted"),
        ({"input__uri": "data/", "input__days": 3}, r"3 folders are wanted, but no \{as_of\} is in input.uri"),
        ({"input__days": 3}, r"with \{as_of\} in output.uri every night has a ledger of its own"),
        ({"model__precision": "int4"}, r"model.precision: .*'int8', 'bf16' or 'fp32'.* got 'int4'"),
        ({"schedule__timezone": "Mars/Base"}, r"no time zone 'Mars/Base'"),
        ({"limits__bad_rows": 3}, r"limits.bad_rows: a share of the rows is wanted, from 0 to 1"),
        ({"gate": 3}, r"gate: a section is wanted, .* got 3"),
        ({"workers": 3}, r"workers: a section is wanted, .* got 3"),
        ({"model__preprocess": [1]}, r"model.preprocess: a section is wanted, .* got \[1\]"),
        ({"model__calibration": {"seeds": 3}}, r"unknown key 'model.calibration.seeds': did you mean 'seed'\?"),
        ({"workers__groups": [{"label": {}}]}, r"unknown key 'workers.groups.0.label': did you mean 'labels'\?"),
    ],
)
def test_a_mistake_is_named_with_the_way_out(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(raw(**changes))


def test_the_image_has_a_name_in_every_format() -> None:
    assert parse_spec(raw()).input.image == "image"
    assert parse_spec(raw(input__format="webdataset")).input.image.startswith("jpg;jpeg;png")
    assert parse_spec(raw(input__format="webdataset", input__image="webp")).input.image == "webp"


def test_input_is_one_place_or_several() -> None:
    assert parse_spec(raw()).input.uris == ("data/{as_of}",)
    assert parse_spec(raw(input__uri=["a", "b"])).input.uris == ("a", "b")
    given = parse_spec({**raw(), "input": {"manifest": "l"}})
    assert (given.input.uris, given.input.manifest) == ((), "l")


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(SpecError, match=r"(?s)'name' is missing.*'input' is missing"):
        parse_spec({"modle": {}})


def test_set_overrides_a_key_and_makes_sections_as_needed(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(raw()))
    spec = load_spec(str(file), ["workers.max=3", "model.precision=fp32", "input.keys=[a, b]"])
    assert (spec.workers.max, spec.model.precision, spec.input.keys) == (3, "fp32", ("a", "b"))


@pytest.mark.parametrize(
    ("override", "message"), [("workers.max", "section.key=value"), ("name.x=1", "name is a value, not a section")]
)
def test_a_malformed_override_is_explained(tmp_path: Path, override: str, message: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(raw()))
    with pytest.raises(SpecError, match=message):
        load_spec(str(file), [override])


def test_a_spec_file_that_is_not_there_lists_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONF.parent)
    with pytest.raises(SpecError, match=r"no spec at conf/dmo.yaml \(there is .*conf/demo.yaml"):
        load_spec("conf/dmo.yaml", [])


def test_a_spec_that_is_not_yaml_or_not_a_mapping_says_so(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("a: [")
    with pytest.raises(SpecError, match="not YAML"):
        load_spec(str(file), [])
    file.write_text("just text")
    with pytest.raises(SpecError, match="holds no spec"):
        load_spec(str(file), [])


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda f: f.name)
def test_every_spec_in_conf_loads(file: Path) -> None:
    assert load_spec(str(file), []).name


def test_conf_holds_the_four_jobs_that_the_readme_names() -> None:
    names = {file.name for file in CONF.glob("*.yaml")}
    assert names >= {"demo.yaml", "imagenet-resnet50-s3.yaml", "embeddings.yaml", "image-folder.yaml"}


def test_every_field_of_the_spec_is_described() -> None:
    schema = JobSpec.model_json_schema()
    sections = {"JobSpec": schema, **schema["$defs"]}
    described = {
        f"{section}.{key}": "description" in about
        for section, keys in sections.items()
        for key, about in keys["properties"].items()
    }
    assert len(described) > 60
    assert [key for key, has_words in described.items() if not has_words] == []


def test_all_faults_of_all_sections_are_told_at_once_and_no_credential_is_shown() -> None:
    given = raw(
        input={
            "uri": ["s3://bucket/{as_of}", "https://user:geheim@host/x"],
            "uri_roots": ["http://169.254.169.254/"],
            "imge": "x",
            "days": 0,
        },
        model={"arch": "resnet50", "weights": "https://host/x?sig=geheim", "float_layers": 2},
        output={"uri": "https://user:geheim@host/out", "topk": 0, "zzzz": 1},
    )
    with pytest.raises(SpecError) as refused:
        parse_spec(given)
    said = str(refused.value)
    for fault in (
        r"input.uri: 'https://…@host/x': the URL carries a user name or password",
        r"input.uri_roots: http://169.254.169.254/: 169.254.169.254 is an address that no image server has",
        r"unknown key 'input.imge': did you mean 'image'?",
        r"input.days: Input should be greater than or equal to 1, got 0",
        r"did you mean torchvision/resnet50?",
        r"model.weights: 'https://host/x?…': the URL carries a signature or token in its query",
        r"model.float_layers: Input should be less than or equal to 1, got 2",
        r"output.uri: 'https://…@host/out': the URL carries a user name or password",
        r"output.topk: Input should be greater than or equal to 1, got 0",
        r"unknown key 'output.zzzz'",
    ):
        assert said.count(fault) == 1, fault
    assert "geheim" not in said


def test_faults_of_a_whole_section_are_told_together_once_its_types_are_right() -> None:
    given = raw(
        input={"uri": "data/", "days": 3, "keys": ["id", "id", "plan"]},
        model={"arch": "resnet50", "device": "cuda", "precision": "int8"},
    )
    with pytest.raises(
        SpecError, match=r"folders are wanted.*plan is a name.*named twice.*torchvision/resnet50.*model\.device: cuda"
    ):
        parse_spec(given)


@pytest.mark.parametrize("given", [0.01, {"share": 0.01}])
def test_a_budget_of_rows_is_a_share_of_them(given: object) -> None:
    limits = parse_spec(raw(limits={"bad_rows": given, "gone_rows": given})).limits
    for budget in (limits.bad_rows, limits.gone_rows):
        assert not budget.exceeded(10, 1000)
        assert budget.exceeded(11, 1000)
    assert parse_spec(raw(limits={"bad_rows": 0})).limits.bad_rows.exceeded(1, 1000)


def test_a_budget_may_say_how_many_rows_it_takes() -> None:
    budget = parse_spec(raw(limits={"bad_rows": {"share": 0.01, "at_least": 5}})).limits.bad_rows
    assert not budget.exceeded(4, 50)
    assert budget.exceeded(5, 50)
    assert str(budget) == "1.00%, and up to 4 rows"
