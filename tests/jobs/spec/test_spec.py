"""The spec: what is refused, with which words, and what is filled in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.errors import SpecError
from jobs.spec.keys import every_key
from jobs.spec.load import load_spec, parse_spec
from jobs.spec.schema import JobSpec, RowBudget

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
        ({"model__arch": "resnet50"}, r"write torchvision/resnet50, or my_nets:function"),
        (
            {"limits__bad_rows": {"share": 0.1, "atleast": 3}},
            r"key 'limits.bad_rows.atleast': did you mean 'at_least'\?",
        ),
        ({"limits__gone_rows": {"at_least": 3}}, r"'limits.gone_rows.share' is missing"),
        ({"workers__min": 9, "workers__max": 3}, r"workers.min 9 is above workers.max 3"),
        ({"input__keys": ["score"]}, r"score is a name that Stint uses in its output"),
        ({"input__keys": [""]}, r"input.keys: an empty name; write that of a column"),
        ({"input__keys": ["plan"]}, r"plan is a name that Stint uses in its output"),
        ({"input__keys": ["a", "a"]}, r"named twice"),
        ({"input__keys": ["Label"]}, r"Label is a name that Stint uses.*write `keys: \[\{truth: Label\}\]`"),
        ({"input__keys": ["Row"]}, r"write `keys: \[\{input_row: Row\}\]`"),
        ({"input__keys": [{"Model": "x"}]}, r"write `keys: \[\{input_model: x\}\]`"),
        ({"input__keys": ["sku", {"SKU": "x"}]}, r"SKU is named twice.*write `keys: \[\{input_sku: x\}\]`"),
        ({"input__keys": [{"a": ["x"]}]}, r"input.keys"),
        ({"input__keys": [{"truth": "cat"}], "input__format": "images"}, r"no 'cat'; their keys are path"),
        ({"input__keys": ["JPG"], "input__format": "webdataset"}, r"'JPG' is the image itself"),
        (
            {"input__sample_key": "last_dot"},
            r"input.sample_key: it is for format: webdataset, and the format is parquet",
        ),
        ({"input__keys": ["id"], "input__format": "images"}, r"image files have no columns"),
        ({"model__task": "embed", "gate__labels_column": "x"}, r"embeddings have no classes"),
        ({"gate": {"min_top1": 0.5}}, r"gate.min_top1: true top-1 needs gate.labels_column"),
        ({"input__uri": ""}, r"input: an empty path; write \. for the working directory"),
        ({"input__uri": ["data/", ""]}, r"an empty path"),
        ({"input": {"manifest": ""}}, r"an empty path"),
        ({"input__days": 10**9}, r"input.days: a whole number from 1 to 3660 is wanted, got 1000000000"),
        ({"input__pin": True}, r"input.pin: it is for tables \(iceberg, lance\), and the format is parquet"),
        (
            {"input__pin": True, "input__format": "delta"},
            r"input.pin: Delta has no tags; .*deletedFileRetentionDuration",
        ),
        ({"input__format": "webdataset", "input__image": "jpg;png", "input__keys": ["JPG"]}, r"'JPG' is the image"),
        ({"input__format": "webdataset", "input__image": ";"}, r"';' names no extension"),
        ({"input__uri": []}, r"exactly one of uri and manifest is wanted"),
        ({"input__manifest": "list.txt"}, r"exactly one of uri and manifest is wanted"),
        ({"input__uri": "data/", "input__days": 3}, r"3 folders are wanted, but no \{as_of\} is in input.uri"),
        ({"input__days": 3}, r"with \{as_of\} in output.uri every night has a ledger of its own"),
        (
            {"model__precision": "int4"},
            r"precision: one of int8, bf16, fp32 is wanted, got 'int4'; write `precision: int8`",
        ),
        (
            {"input__format": "image"},
            r"lance is wanted, got 'image'; write `format: images`",
        ),
        (
            {"input__formats": ["jpg", "HEIC"]},
            r"'jpg': none .* did you mean jpeg\?.*'HEIC': none .* did you mean heif\?",
        ),
        ({"input__formats": ["wepb"]}, r"did you mean webp\?"),
        ({"schedule__timezone": "Mars/Base"}, r"no time zone 'Mars/Base'"),
        (
            {"limits__bad_rows": 5},
            r"limits.bad_rows: a share from 0 to 1 or a section is wanted, got 5; write `bad_rows: 0.01`",
        ),
        ({"limits__gone_rows": "many"}, r"limits.gone_rows: .* is wanted, got 'many'; write `gone_rows: 0.5`"),
        ({"limits__bad_rows": {"share": 5}}, r"limits.bad_rows.share: .* got 5; write `share: 0.01`"),
        ({"limits__bad_rows": {"at_least": 5}}, r"'limits.bad_rows.share' is missing; write `share: 0.01`"),
        ({"gate": 3}, r"gate: a section is wanted, got 3; write `gate: \{min_agreement: 0.97\}`"),
        ({"workers": 3}, r"workers: a section is wanted, got 3"),
        (
            {"model__preprocess": [1]},
            r"model.preprocess: a section is wanted, got \[1\]; write `preprocess: \{resize: 256\}`",
        ),
        ({"model__calibration": {"seeds": 3}}, r"unknown key 'model.calibration.seeds': did you mean 'seed'\?"),
        ({"output__topk": True}, r"topk: a whole number of at least 1 is wanted, got 'true'"),
        ({"workers__memory": "2G"}, r"workers.memory: '2G' is not understood; write `memory: 2GiB`"),
        ({"workers__memory": "0GB"}, r"workers.memory: .* is not understood; write `memory: 2GiB`"),
        ({"schedule__finish_by": "25:00"}, r"finish_by: '25:00' is not understood; write `finish_by: \"06:00\"`"),
        (
            {"input__keys": "id, name"},
            r"input.keys: a list of texts, or \{name: column\} is wanted.*write `keys: \[id\]`",
        ),
        ({"input__uri": "data/{asof}"}, r"input.uri: 'data/\{asof\}': \{asof\} stands for nothing; write \{as_of\}, "),
        ({"output__uri": "out/{ds}"}, r"output.uri: 'out/\{ds\}': \{ds\} stands for nothing; write \{as_of\}"),
        ({"model__arch": "timm/x"}, r"model.arch: 'timm/x': no network of torchvision: .* my_nets:function"),
        ({"model__preprocess": {"mean": 0.5}}, r"mean: a list of 3 numbers is wanted, got 0.5; write `mean: \[0.485, "),
        ({"model__preprocess": {"mean": [0.5]}}, r"mean: a list of 3 numbers is wanted"),
        ({"model__preprocess": {"std": [0.1, 0, 0.1]}}, r"model.preprocess.std: each must be above 0"),
        ({"model__preprocess": {"resize": 32, "crop": 64}}, r"resize 32 is smaller than crop 64.*write `resize: 64`"),
        ({"model__preprocess": {"resize": 20000}}, r"resize: 20000 is more than 8192 pixels"),
        (
            {"model__preprocess": {"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}},
            r"mean: \[123.7, .*\] is for pixels from 0 to 255, .*: divide each by 255.*std: .*divide each by 255",
        ),
        ({"workers__groups": [{"labels": {"a b": "c"}}]}, r"workers.groups.0.labels: .*write `labels: \{ray.io/"),
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


def test_a_spec_file_that_is_not_there_is_named() -> None:
    with pytest.raises(SpecError, match=r"no spec at conf/dmo\.yaml"):
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
        r"input.uri_roots: 'http://169.254.169.254/': 169.254.169.254 is an address that no image server has",
        r"unknown key 'input.imge': did you mean 'image'?",
        r"input.days: a whole number from 1 to 3660 is wanted, got 0",
        r"write torchvision/resnet50, or my_nets:function",
        r"model.weights: 'https://host/x?…': the URL carries a signature or token in its query",
        r"model.float_layers: a share from 0 to 1 is wanted, got 2",
        r"output.uri: 'https://…@host/out': the URL carries a user name or password",
        r"output.topk: a whole number of at least 1 is wanted, got 0; write `topk: 5`",
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
        SpecError, match=r"folders are wanted.*named twice.*plan is a name.*torchvision/resnet50.*model\.device: cuda"
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


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("name: 2026", "name", "2026"),
        ("schedule: {finish_by: 22:30}", "schedule.finish_by", "22:30"),
        ("schedule: {finish_by: 6:00}", "schedule.finish_by", "06:00"),
        ("schedule: {finish_by: 22:30:00}", "schedule.finish_by", "22:30"),
        ("input: {uri: x, keys: id}", "input.keys", ("id",)),
        ("input: {uri: x, keys: 7}", "input.keys", ("7",)),
        ("input: {uri: 2026-03-01}", "input.uri", "2026-03-01"),
        ("input: {uri: 2026-13-01}", "input.uri", "2026-13-01"),
        ("input: {uri: x, uri_roots: data}", "input.uri_roots", ("data",)),
        ("input: {uri: x, keys:}", "input.keys", ()),
        ("input: {uri: x, format: Images}", "input.format", "images"),
        ("model: {arch: a:b, labels: [yes, no, 1, null]}", "model.labels", ("yes", "no", "1", "null")),
        ("model: {arch: a:b, precision: FP32}", "model.precision", "fp32"),
        ("model: {arch: a:b, args: {pretrained: yes, at: 1:30, in: {3: x}}}", "model.args",
         {"pretrained": True, "at": 90, "in": {3: "x"}}),
        ("model: {arch: a:b, weights:}", "model.weights", None),
        ("limits: {bad_rows: 1%}", "limits.bad_rows.share", 0.01),
        ("limits: {bad_rows: {share: 1 %, at_least: 5}}", "limits.bad_rows", RowBudget(share=0.01, at_least=5)),
        ("limits: {gone_rows: '0.1'}", "limits.gone_rows.share", 0.1),
        ("gate: {min_agreement: 97.5 %}", "gate.min_agreement", 0.975),
        ("workers: {memory: 2GB}", "workers.memory_bytes", 1907 * 2**20),
        ("workers: {memory: 1.5 gib}", "workers.memory_bytes", 1536 * 2**20),
        ("workers: {memory: 2Gi}", "workers.memory_bytes", 2 * 2**30),
        ("workers: {max: 1e3}", "workers.max", 1000),
        ("workers: {max: }", "workers.max", 64),
        ("workers:", "workers.max", 64),
        ("output: {uri: x, single_writer: yes}", "output.single_writer", True),
        ("output: &out {uri: x, topk: 3}\nlimits: {<<: {bad_rows: 0.5}, bad_rows: 0.2}", "limits.bad_rows.share", 0.2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_what_has_one_meaning_is_taken(tmp_path: Path, line: str, key: str, value: object, encoding: str) -> None:
    given = {"name": "job", "input": {"uri": "data"}, "model": {"arch": "a:b"}, "output": {"uri": "out"}}
    others = "".join(f"{name}: {of}\n" for name, of in given.items() if f"{name}:" not in line)
    (tmp_path / "job.yaml").write_text(others + line + "\n", encoding=encoding)
    found: Any = load_spec(str(tmp_path / "job.yaml"), [])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_one_group_is_a_list_of_one_and_its_labels_are_text(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw()) + "workers: {groups: {labels: {spot: true}}}\n")
    [group] = load_spec(str(tmp_path / "job.yaml"), []).workers.groups
    assert group.labels == {"spot": "true"}


def test_values_of_set_are_taken_as_those_of_the_file_are(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw()) + "limits:\n")
    sets = ["limits.bad_rows=1%", "schedule.finish_by=22:30", "input.keys=id", "name=2026", "workers.max="]
    spec = load_spec(str(tmp_path / "job.yaml"), sets)
    assert (spec.limits.bad_rows.share, spec.schedule.finish_by, spec.input.keys) == (0.01, "22:30", ("id",))
    assert (spec.name, spec.workers.max) == ("2026", 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\ninput: {uri: x}\nname: b\n", r"name stands twice, in lines 1 and 3"),
        ("input:\n  uri: x\n  keys: [a]\n  uri: y\n", r"input.uri stands twice, in lines 2 and 4"),
        ("model: {args: {n: 1, n: 2}}", r"model.args.n stands twice, in lines 1 and 1"),
        ("workers:\n  groups:\n  - max: 1\n    max: 2\n", r"workers.groups.0.max stands twice, in lines 3 and 4"),
        ("name: a\nname: b\nlimits: {}\nlimits: {}\n", r"name stands twice.*limits stands twice, in lines 3 and 4"),
        ("a: 1\n? [b]\n: 2\n", r"not YAML in line 2: a key is a list or a section"),
        ("a: 1\nb: c: d\n", r"not YAML in line 2: mapping values are not allowed here"),
        ("a: !spot\n", r"into quotes"),
        ("a: 1\n---\nb: 2\n", r"not YAML in line 2"),
    ],
)
def test_what_is_wrong_with_the_yaml_is_told_with_its_lines(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(SpecError, match=message):
        load_spec(str(tmp_path / "job.yaml"), [])


def test_a_spec_that_is_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(SpecError, match="is not text in UTF-8"):
        load_spec(str(tmp_path / "job.yaml"), [])


@pytest.mark.parametrize("wrong", [3.25, -7, "?", [["x"]], True, {"x": {}}, ""], ids=repr)
@pytest.mark.parametrize("path", [key.path for key in every_key()])
def test_no_refusal_of_any_key_speaks_of_the_library_that_checks(path: str, wrong: object) -> None:
    output = {"uri": "out", "table": {"format": "iceberg"}}
    given = raw(workers={"groups": [{"labels": {"a": "b"}}]}, output=output)
    here: Any = given
    *sections, name = path.split(".")
    for section in sections:
        here = here.setdefault(section, {})
        here = here[0] if isinstance(here, list) else here
    here[name] = wrong
    said = _refusal(given)
    assert name in said or "an empty path" in said or not said
    assert not re.search(r"(?i)input should|valid (?!here)|pydantic|pattern|instance|tuple|dict\b|str\b|\^", said)


def test_formats_are_some_that_can_be_decoded() -> None:
    assert parse_spec(raw(input__formats=["jpeg", "heif"])).input.formats == ("jpeg", "heif")
    assert "'heic': none of jpeg, png, gif, webp, bmp, tiff, avif, jpeg2000, heif, jxl" in _refusal(
        raw(input__formats=["jpeg", "heic"])
    )
    assert "input.formats: it is empty" in _refusal(raw(input__formats=[]))


def _refusal(given: dict[str, Any]) -> str:
    """What is said of a spec; empty where it is taken."""
    try:
        parse_spec(given)
    except SpecError as error:
        return str(error)
    return ""


def test_a_key_may_have_a_name_of_its_own() -> None:
    keys = ["sku", {"truth": "label", "n": "sample.n"}]

    spec = parse_spec(raw(input__keys=keys))

    assert spec.input.copied == {"sku": "sku", "truth": "label", "n": "sample.n"}
    assert spec.model_dump(mode="json")["input"]["keys"] == keys
    assert parse_spec(spec.model_dump(mode="json")) == spec
    assert parse_spec(raw(input__keys={"truth": "label"})).input.copied == {"truth": "label"}


def test_a_key_of_yaml_is_text_whatever_it_looks_like(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw()))
    spec = load_spec(str(tmp_path / "job.yaml"), ["input.keys=[2024, {no: 7}, {truth: label}]"])

    assert spec.input.copied == {"2024": "2024", "no": "7", "truth": "label"}
