from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

from harness.report import drawings


def words(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("text")]


def test_bins_double_and_do_not_overlap() -> None:
    edges = drawings.bins(300)
    assert edges[:6] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 8)]
    assert edges[-1] == (257, 512)
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(edges))
    assert drawings.bins(0)[-1] == (4, 4)
    assert drawings.bins(4096)[-1] == (2049, 4096)


def test_a_bin_that_was_never_tried_says_zero() -> None:
    shown = words(drawings.histogram("length", {0: 5, 40: 7}))
    assert shown.count("0") == 1 + 7  # the name of the first bin, and the empty ones
    assert {"5", "7", "≤64"} <= set(shown)


def test_numbers_stand_in_their_order_and_words_by_their_frequency() -> None:
    assert words(drawings.coverage("width", {"10": 1, "9": 5}))[::2] == ["9", "10"]
    assert words(drawings.coverage("K x V", {"128x8": 1, "16x128": 5}))[::2] == ["16x128", "128x8"]
    assert words(drawings.coverage("keys", {"zero": 1, "random": 5}))[::2] == ["random", "zero"]


def test_many_categories_keep_the_frequent_ones() -> None:
    counts = {f"name{i}": i for i in range(100)}
    shown = words(drawings.coverage("keys", counts))
    assert "name99" in shown
    assert "name3" not in shown
    assert f"{100 - drawings.MOST_BARS + 1} more" in shown


def test_colours_are_the_pages_own_and_text_stays_text() -> None:
    for svg in (
        drawings.coverage("length", {str(i): i + 1 for i in range(50)}),
        drawings.budget("gdn_decode", {"equivalence": {"float32": 0.2, "bfloat16": 1.5}}, ["float32", "bfloat16"]),
        drawings.row_errors("gdn_decode", [_panel({"optimized": [5, 0, 1], "baseline": [3, 2, 0]})]),
        drawings.seconds({"equivalence": (1.0, 2.0), "slots_renamed": (0.0, 0.01)}),
    ):
        assert not re.search(r"#[0-9a-f]{6}|DejaVu|xmlns| id=", svg)
        assert "var(--series-1)" in svg
        assert words(svg)
        assert len(svg) < 8_000


def _panel(counts: dict[str, list[int]]) -> drawings.Panel:
    look = {subject: i for i, subject in enumerate(counts)}
    return drawings.Panel("outputs", [0.5, 1.0], counts, look, {0.0: "0", 1.0: "1"}, 1.0)


def test_row_errors_say_how_many_are_above() -> None:
    panel = _panel({"optimized": [990, 8, 2], "baseline": [3, 2, 0], "nothing": [0, 0, 0]})
    assert panel.above("optimized") == [1.0, 0.01, 0.002]
    assert panel.decades == 3
    svg = drawings.row_errors("gdn_decode", [panel])
    assert "2" in words(svg)
    assert "optimized half at most 0.5, 0.002 of the rows above 1, baseline half at most 0.5, 0 of" in svg


def test_foreign_words_are_drawn_as_they_are() -> None:
    assert "$x_1$ <b> 日本" in words(drawings.coverage("keys", {"$x_1$ <b> 日本": 3}))


def test_the_same_drawing_has_the_same_bytes() -> None:
    first, second = (drawings.coverage("width", {"2": 1, "4": 2}) for _ in range(2))
    assert first == second
