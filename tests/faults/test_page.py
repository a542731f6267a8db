"""The page of the kill matrix: it holds every fault, says red what is red, and is safe to open."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.faults import drawing, merge, page, reverse
from harness.faults.verdict import Verdict
from tests.faults.planted import FAULTS, IDS, killed, run, survived, witness

NASTY = "α <script>alert('x')</script> & \x1b[31mred\x1b[0m"
ALIVE, ERROR, UNSEEN, EQUIVALENT, HISTORICAL = IDS[1], IDS[2], IDS[3], IDS[4], IDS[0]


class Tags(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def verdicts() -> list[Verdict]:
    rest = [killed(name, witness("equivalence", 0.3 * i + 0.1)) for i, name in enumerate(IDS[5:])]
    return [
        killed(HISTORICAL, witness("equivalence", 40.0, sentence=NASTY), witness("repeated", 41.0)),
        survived(ALIVE),
        Verdict(FAULTS[ERROR], "error", message=f"Traceback\nValueError: {NASTY}"),
        Verdict(FAULTS[UNSEEN], "unseen", message="It needs a GPU."),
        Verdict(replace(FAULTS[EQUIVALENT], equivalent="Zero is zero."), "equivalent", message="Zero is zero."),
        *rest,
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    merged = merge.merge([run(verdicts()), run([survived(IDS[5])], tier="quick", name="q.json")])
    _, path = page.write(merged, reverse.view(merged), tmp_path_factory.mktemp("page"))
    return path.read_text(encoding="utf-8")


def test_every_fault_is_there(source: str) -> None:
    tags = Tags(source)
    rows = {attributes.get("id") for tag, attributes in tags.found if tag == "th"}
    drawings = " ".join(attributes.get("aria-label") or "" for tag, attributes in tags.found if tag == "svg")
    for name in IDS:
        assert name in rows
        assert re.search(rf"(^| |; ){re.escape(name)} cpu premerge ", drawings)


def test_no_script_and_nothing_is_loaded(source: str) -> None:
    tags = Tags(source)
    assert {tag for tag, _ in tags.found}.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert "<script" not in source
    assert "\x1b" not in source
    assert "α <script>alert('x')</script> & red" in tags.words
    assert not re.search(r"url\(|@import|javascript:", source)
    assert not [a for _, of in tags.found for a in of if a.startswith("on") or a == "src"]


def test_a_survivor_is_red_and_told_in_full(source: str) -> None:
    assert '<header class="failed">' in source
    assert f"3 of {len(IDS) - 2} visible faults survived or went wrong" in Tags(source).words
    cards = source.split('<article class="card failure">')[1:]
    assert len(cards) == 3
    card = next(c for c in cards if ALIVE in c)
    fault = FAULTS[ALIVE]
    for words in (fault.wrong, fault.find, fault.replace, fault.subject, "1,234 cases", "all that the tier has"):
        assert words in Tags(card).words
    assert "<strong>survived</strong>" in card
    assert '<td class="survived">survived</td>' in source


def test_without_a_survivor_nothing_is_red(tmp_path: Path) -> None:
    merged = merge.merge([run([killed(name, witness("equivalence")) for name in IDS])])
    _, path = page.write(merged, reverse.view(merged), tmp_path)
    green = path.read_text(encoding="utf-8")
    assert '<header class="held">' in green
    assert 'class="card failure"' not in green
    assert 'id="survivors"' not in green
    # In the drawings neither.
    assert "var(--bad)" not in green.split("</style>")[-1]


def test_a_historical_fault_leads_to_its_source(source: str) -> None:
    links = {attributes.get("href") for tag, attributes in Tags(source).found if tag == "a"}
    assert FAULTS[HISTORICAL].source.startswith("https://")
    assert FAULTS[HISTORICAL].source in links


def test_each_status_has_words_of_its_own_in_the_heat_map() -> None:
    rows = {v.fault.id: {"cpu premerge": v} for v in verdicts()}
    svg = drawing.heat("chunk_metadata", rows, ["cpu premerge", "cuda premerge"])
    for status in ("survived", "error", "unseen", "equivalent", ""):
        assert f">{drawing.WORDS[status]}</text>" in svg
    assert len(set(drawing.WORDS.values())) == len(drawing.WORDS)
    assert svg.count("var(--bad)") == 4  # a cell, both its edges, its words


def test_colours_follow_the_logarithm_of_the_seconds() -> None:
    assert [round(drawing.shade(s), 2) for s in (0.001, 0.1, 100, 5000)] == [0.10, 0.10, 0.62, 0.62]
    steps = [drawing.shade(10 * s) - drawing.shade(s) for s in (0.1, 1.0, 10.0)]
    assert max(steps) - min(steps) < 1e-9


def test_the_curve_says_how_many_were_caught_by_when() -> None:
    svg = drawing.caught({"cpu quick": [1.0, 0.5, 2.0], "cpu nightly": []}, {"cpu quick": 4, "cpu nightly": 0})
    assert "cpu quick: 3 of 4, half of all after 1.0 s; cpu nightly: 0 of 0" in svg


def test_an_empty_run_makes_a_page(tmp_path: Path) -> None:
    merged = merge.merge([run([], planned=3)])
    _, path = page.write(merged, reverse.view(merged), tmp_path)
    assert '<header class="incomplete">' in path.read_text(encoding="utf-8")


def test_no_two_of_nine_curves_look_alike() -> None:
    assert len({drawing.look(i) for i in range(9)}) == 9
    assert len({drawing.look(i)[1] for i in range(3)}) == 3
