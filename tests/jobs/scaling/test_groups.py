"""Groups of nodes in order of preference: what is asked of which, who is let go, and how a spec names them."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.errors import SpecError
from jobs.scaling.groups import GROUP_START_FAILURES, NodeGroup, StartFailures, requests, surplus
from jobs.spec.load import parse_spec
from jobs.spec.schema import Group, JobSpec, Workers


def group(
    *, most: int | None = None, ready: int = 0, starting: int = 0, closed: bool = False, unfit: bool = False
) -> NodeGroup:
    return NodeGroup(
        Group.model_construct(labels={}, max=most),
        ready=dict.fromkeys(range(ready)),
        starting=dict.fromkeys(range(ready, ready + starting)),
        closed_until=1.0 if closed else 0.0,
        failures=StartFailures(GROUP_START_FAILURES if unfit else 0),
    )


def ask(wanted: int, *groups: NodeGroup, replace: bool = True) -> list[int]:
    return requests(wanted, groups, 0.5, replace=replace)


def test_the_preferred_group_is_asked_for_all_that_it_may_have_and_the_next_for_the_rest() -> None:
    assert ask(10, group(), group()) == [10, 0]
    assert ask(10, group(most=6), group()) == [6, 4]
    assert ask(10, group(most=6, ready=2, starting=1), group()) == [3, 4]
    assert ask(10, group(ready=10), group()) == [0, 0]


def test_a_group_without_nodes_is_passed_over_and_the_last_one_never_is() -> None:
    assert ask(10, group(closed=True, ready=3), group()) == [0, 7]
    assert ask(10, group(closed=True), group(closed=True)) == [0, 10]


def test_what_no_open_group_may_take_is_still_asked_of_the_closed_ones() -> None:
    assert ask(10, group(closed=True), group(closed=True, most=4)) == [6, 4]
    assert ask(10, group(closed=True, most=2), group(closed=True), group(most=4, ready=4)) == [2, 4, 0]
    assert ask(4, group(closed=True), group(most=4, ready=4)) == [0, 0]
    assert ask(10, group(closed=True, unfit=True), group(most=4)) == [0, 4]


def test_when_a_preferred_group_opens_again_it_is_asked_for_as_many_as_work_elsewhere() -> None:
    assert ask(10, group(), group(ready=10)) == [10, 0]
    assert ask(10, group(most=4, ready=1), group(ready=9)) == [3, 0]
    assert ask(10, group(), group(ready=10), replace=False) == [0, 0]


def test_workers_of_less_preferred_groups_are_let_go_as_preferred_ones_take_their_place() -> None:
    assert surplus(10, [group(ready=3), group(ready=10)]) == [0, 3]
    assert surplus(10, [group(ready=9), group(ready=2), group(ready=4)]) == [0, 1, 4]


def test_within_the_most_preferred_group_at_work_nobody_is_let_go() -> None:
    assert surplus(4, [group(ready=9)]) == [0]
    assert surplus(4, [group(), group(ready=9)]) == [0, 0]


# ------------------------------------------------------------------------------------------ the spec


def spec(*groups: dict[str, Any]) -> JobSpec:
    raw = {"name": "x", "input": {"uri": "in"}, "model": {"arch": "a:b"}, "output": {"uri": "out"}}
    return parse_spec({**raw, "workers": {"groups": list(groups)}})


def test_a_spec_names_groups_by_ray_node_labels() -> None:
    given = spec({"labels": {"ray.io/market-type": "spot"}, "max": 40}, {"labels": {"stint/cpu": "in(c7i, c7a)"}})
    assert [group.max for group in given.workers.groups] == [40, None]
    assert given.workers.groups[1].labels == {"stint/cpu": "in(c7i, c7a)"}
    assert Workers().groups == ()


@pytest.mark.parametrize(
    ("group", "told"),
    [
        ({"labels": {}}, "workers.groups: a group is told by its labels"),
        ({"labels": {"ray.io/market type": "spot"}}, "workers.groups.0.labels"),
        ({"labels": {"a": "in(x"}}, "workers.groups.0.labels: .in.x. is not understood"),
        ({"lables": {"a": "b"}}, "did you mean 'labels'"),
    ],
)
def test_a_group_that_cannot_be_is_refused_by_name(group: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        spec(group)


@pytest.mark.parametrize("value", ["spot", "!spot", "in(c7i, c7a)", "!in(c7i,c7a)"])
def test_every_selector_that_the_spec_takes_ray_takes_too(value: str) -> None:
    from ray._private.label_utils import validate_label_selector

    assert spec({"labels": {"stint/cpu": value}}).workers.groups[0].labels == {"stint/cpu": value}
    assert validate_label_selector({"stint/cpu": value}) is None
