"""Which properties and which values the kills need, from a set of verdicts made by hand."""

from __future__ import annotations

from collections import Counter

from harness.faults import merge, page, reverse
from harness.isolation import suite
from tests.faults.planted import IDS, OPERATOR, case, killed, run, survived, witness

FIRST, SECOND, THIRD, FOURTH = IDS[:4]
VERDICTS = [
    killed(FIRST, witness("equivalence"), witness("repeated", 2.0)),
    killed(SECOND, witness("no_host_sync", case=case(0, 20, chunk_size=16)), exhausted=True),
    killed(THIRD, witness("aligned_prefix")),
    survived(FOURTH),
]


def statuses(view: reverse.Reverse) -> dict[str, str]:
    return {standing.property: standing.status for standing in view.standings}


def test_the_lonely_property_is_found_and_the_others_are_told_apart() -> None:
    view = reverse.view(merge.merge([run(VERDICTS)]))
    known = {p.name for p in suite(OPERATOR).PROPERTIES}
    found = statuses(view)
    assert set(found) == known
    assert {name: status for name, status in found.items() if status != "no witness"} == {
        "equivalence": "never alone",
        "repeated": "never alone",
        "no_host_sync": "alone",
        # Time ran out before all cases were tried: perhaps another property kills it too.
        "aligned_prefix": "undecided",
    }
    (lonely,) = view.named("alone")
    assert (lonely.property, lonely.alone) == ("no_host_sync", [(SECOND, "cpu premerge")])


def test_with_one_witness_nobody_is_known_to_be_alone() -> None:
    view = reverse.view(merge.merge([run(VERDICTS, witnesses=1)]))
    assert not view.asked
    assert set(statuses(view).values()) == {"never alone", "no witness"}


def test_a_property_needed_in_one_operator_is_needed() -> None:
    standings = [
        reverse.Standing("conv_prefill", "repeated"),
        reverse.Standing("conv_update", "repeated", first=["x"], alone=[("x", "cpu quick")]),
        reverse.Standing("conv_update", "high_slot", first=["y"]),
        reverse.Standing("conv_prefill", "high_slot"),
        reverse.Standing("conv_prefill", "cold_equals_warm"),
    ]
    view = reverse.Reverse(True, standings, {}, {}, {})
    assert page.summed(view, "never alone") == ["high_slot"]
    assert page.summed(view, "no witness") == ["cold_equals_warm"]


def test_values_that_are_drawn_and_in_no_killing_case() -> None:
    view = reverse.view(merge.merge([run(VERDICTS)]))
    (axes,) = view.axes.values()
    by_name = {axis.name: axis for axis in axes}
    assert (view.drawn[OPERATOR], view.killing[OPERATOR]) == (reverse.DRAWN, 4)
    # Three killing cases with chunks of 8, one with 16.
    assert by_name["chunk size"].needed == {"8": 3, "16": 1}
    # Which others are drawn depends on what the process has imported: Hypothesis takes constants from there.
    assert len(by_name["chunk size"].unneeded) > 2
    assert not {"8", "16"} & set(by_name["chunk size"].unneeded)
    # Lengths are binned: 3, 0 and 20.
    assert by_name["length"].needed == {"3": 3, "0": 1, "17 to 32": 1}


def test_what_crashed_could_not_be_shrunk_and_needs_nothing() -> None:
    crashed = killed(FIRST, witness("equivalence", symptom="crashed", case=case(300, 5, chunk_size=100)))
    view = reverse.view(merge.merge([run([crashed, VERDICTS[1]])]))
    assert view.killing[OPERATOR] == 1
    assert {axis.name: axis.needed for axis in view.axes[OPERATOR]}["chunk size"] == {"16": 1}


def test_drawing_runs_nothing_and_is_the_same_every_time() -> None:
    counts: list[dict[str, Counter[str]]] = [{}, {}]
    assert [reverse.draw(OPERATOR, "cpu", of, 40) for of in counts] == [40, 40]
    assert counts[0] == counts[1]
