"""No operator without a suite, no suite with holes, no relation that nobody uses."""

from __future__ import annotations

import importlib

import pytest

import references
from harness import equivalence, guards, placement, relations, splitting
from harness.context import GROUPS, Property
from harness.isolation import find_property, suite
from harness.operators import OPERATORS, TokenOperator
from harness.operators.registry import BUILT_IN
from harness.subjects import baseline, registered
from harness.tiers import CASES, TIERS


def declared(module: object) -> dict[str, Property]:
    return {name: value for name, value in vars(module).items() if isinstance(value, Property)}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_a_whole_suite(name: str) -> None:
    module = suite(name)
    assert name == module.OPERATOR == OPERATORS[name].name
    groups = {p.group for p in module.PROPERTIES}
    assert {"equivalence", "relations", "arguments", "cost"} <= groups <= set(GROUPS)
    if isinstance(OPERATORS[name], TokenOperator):
        assert "memory" in groups
    names = [p.name for p in module.PROPERTIES]
    assert len(set(names)) == len(names)
    assert all(find_property(name, p.name) is p for p in module.PROPERTIES)
    assert callable(module.test_property)


@pytest.mark.parametrize("name", OPERATORS)
def test_what_a_suite_declares_it_runs(name: str) -> None:
    """A property that is written down and left out of the list would look like coverage."""
    module = suite(name)
    forgotten = [found for found, prop in declared(module).items() if prop not in module.PROPERTIES]
    assert forgotten == []


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_a_reference_subjects_and_cases(name: str) -> None:
    assert registered(name)
    assert all(callable(subject.load()) for subject in registered(name))
    if name in BUILT_IN:
        # Another folder's operator brings its own truth.
        assert callable(getattr(references, name))
        assert baseline(name) is not None
    assert OPERATORS[name].summary
    assert all(CASES[tier][device][name] > 0 for tier in TIERS for device in ("cpu", "cuda"))


@pytest.mark.parametrize("module", [equivalence, guards, placement, relations, splitting])
def test_every_relation_and_guard_is_used(module: object) -> None:
    used = {id(p) for name in OPERATORS for p in suite(name).PROPERTIES}
    assert [name for name, prop in declared(module).items() if id(prop) not in used] == []


def test_unknown_property_names_the_known() -> None:
    with pytest.raises(ValueError, match="conv_update has none called 'speed'; it has equivalence, "):
        find_property("conv_update", "speed")


def test_a_property_of_no_group_is_refused() -> None:
    with pytest.raises(ValueError, match="got group 'speed', expected one of"):
        Property("fast", "speed", lambda context, case: None)


def test_suites_name_no_kernel() -> None:
    for name in OPERATORS:
        assert not any(
            value.__name__.startswith("optimized")
            for value in vars(importlib.import_module(f"properties.test_{name}")).values()
            if isinstance(value, type(importlib))
        )
