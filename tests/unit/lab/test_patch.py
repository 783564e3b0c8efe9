"""Patch dialects."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet.lab.apiserver import patch
from nodenet.lab.apiserver.schema import SCHEMAS
from nodenet.lab.apiserver.schema_types import ANY
from nodenet.lab.apiserver.status import ApiError

POD, SERVICE = SCHEMAS["Pod"], SCHEMAS["Service"]


@pytest.mark.parametrize(
    ("target", "change", "wanted"),
    [
        # RFC 7386, appendix A.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: Any, change: Any, wanted: Any) -> None:
    before = copy.deepcopy(target)
    assert patch.merge(target, change) == wanted
    assert target == before


def pod(*containers: dict[str, Any]) -> dict[str, Any]:
    return {"spec": {"containers": list(containers)}}


def test_strategic_merges_lists_by_their_key() -> None:
    target = pod({"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "2"})
    change = pod({"name": "a", "env": [{"name": "Y", "value": "2"}]}, {"name": "c", "image": "3"})
    assert patch.strategic(target, change, POD) == pod(
        {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
        {"name": "b", "image": "2"},
        {"name": "c", "image": "3"},
    )


def test_strategic_directives() -> None:
    target = pod({"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"})
    change = pod({"name": "b", "$patch": "delete"}, {"name": "d", "image": "4"})
    change["spec"]["$setElementOrder/containers"] = [{"name": "d"}, {"name": "a"}]
    done = patch.strategic(target, change, POD)
    assert [c["name"] for c in done["spec"]["containers"]] == ["d", "a", "c"]
    strategy = {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}
    change = {"spec": {"strategy": {"type": "Recreate", "$retainKeys": ["type"]}}}
    assert patch.strategic(strategy, change, SCHEMAS["Deployment"]) == {"spec": {"strategy": {"type": "Recreate"}}}
    assert patch.strategic({"a": {"b": 1, "c": 2}}, {"a": {"$patch": "replace", "d": 3}}, ANY) == {"a": {"d": 3}}
    finalizers = {"metadata": {"finalizers": ["a", "b"]}}
    change = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}
    assert patch.strategic(finalizers, change, POD) == {"metadata": {"finalizers": ["b", "c"]}}


def test_atomic_lists_are_replaced() -> None:
    schema = SCHEMAS["NetworkPolicy"]
    target = {"spec": {"ingress": [{"ports": [{"port": 1}]}]}}
    change = {"spec": {"ingress": [{"ports": [{"port": 2}]}]}}
    assert patch.strategic(target, change, schema) == change


def test_strategic_names_an_element_without_key() -> None:
    with pytest.raises(ApiError, match="without its merge key 'name'"):
        patch.strategic(pod({"name": "a"}), pod({"image": "1"}), POD)


@pytest.mark.parametrize(
    ("operations", "wanted"),
    [
        ([{"op": "add", "path": "/b", "value": 1}], {"a": [1, 2], "b": 1}),
        ([{"op": "add", "path": "/a/-", "value": 3}], {"a": [1, 2, 3]}),
        ([{"op": "add", "path": "/a/0", "value": 0}], {"a": [0, 1, 2]}),
        ([{"op": "remove", "path": "/a/0"}], {"a": [2]}),
        ([{"op": "replace", "path": "/a", "value": {}}], {"a": {}}),
        ([{"op": "move", "from": "/a/0", "path": "/b"}], {"a": [2], "b": 1}),
        ([{"op": "copy", "from": "/a", "path": "/x~1y"}], {"a": [1, 2], "x/y": [1, 2]}),
        ([{"op": "test", "path": "/a/1", "value": 2}], {"a": [1, 2]}),
        ([{"op": "replace", "path": "", "value": 7}], 7),
    ],
)
def test_json_patch(operations: Any, wanted: Any) -> None:
    assert patch.json_patch({"a": [1, 2]}, operations) == wanted


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "replace", "path": "/b", "value": 1},
        {"op": "remove", "path": "/a/7"},
        {"op": "add", "path": "/a/7", "value": 1},
        {"op": "test", "path": "/a", "value": 1},
        {"op": "add", "path": "a", "value": 1},
        {"op": "jump", "path": "/a", "value": 1},
        {"op": "add", "path": "/a/0/b/c", "value": 1},
        {"path": "/a"},
        "remove",
    ],
)
def test_json_patch_names_what_cannot_be_done(operation: Any) -> None:
    target = {"a": [1, 2]}
    with pytest.raises(ApiError, match="operation 1") as error:
        patch.json_patch(target, [{"op": "add", "path": "/c", "value": 1}, operation])
    assert error.value.code == 400
    assert target == {"a": [1, 2]}


def test_three_way_keeps_what_others_set_and_removes_what_the_manifest_dropped() -> None:
    last = {"metadata": {"labels": {"a": "1", "b": "2"}}, **pod({"name": "x", "image": "1"}, {"name": "y"})}
    wanted = {"metadata": {"labels": {"a": "1"}}, **pod({"name": "x", "image": "2"})}
    live = {
        "metadata": {"labels": {"a": "1", "b": "2", "c": "3"}, "uid": "u"},
        **pod({"name": "x", "image": "1", "imagePullPolicy": "Always"}, {"name": "y"}, {"name": "injected"}),
    }
    assert patch.three_way(last, wanted, live, POD) == {
        "metadata": {"labels": {"a": "1", "c": "3"}, "uid": "u"},
        **pod({"name": "x", "image": "2", "imagePullPolicy": "Always"}, {"name": "injected"}),
    }


def test_three_way_takes_a_list_whole_when_its_keys_repeat() -> None:
    ports = [{"port": 53, "protocol": "UDP", "name": "a"}, {"port": 53, "protocol": "TCP", "name": "b"}]
    wanted = {"spec": {"ports": ports}}
    live = {"spec": {"ports": [{"port": 53, "protocol": "UDP", "name": "a", "nodePort": 30000}]}}
    assert patch.three_way({}, wanted, live, SERVICE) == wanted


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
_objects = st.dictionaries(st.sampled_from("abcd"), _json, max_size=3)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


@given(_json, _json)
def test_merge_patch_twice_is_once(target: Any, change: Any) -> None:
    once = patch.merge(target, change)
    assert patch.merge(once, change) == once


@given(_objects, _objects)
def test_strategic_without_schema_is_merge_patch(target: Any, change: Any) -> None:
    """Where no list has a key and no directive is used, the two dialects say the same."""
    assert _without_nulls(patch.strategic(target, change, ANY)) == _without_nulls(patch.merge(target, change))


@given(_objects, _objects, _objects)
def test_apply_twice_is_once(last: Any, wanted: Any, live: Any) -> None:
    before = copy.deepcopy(live)
    once = patch.three_way(last, wanted, live, ANY)
    assert live == before
    assert patch.three_way(wanted, wanted, once, ANY) == once
