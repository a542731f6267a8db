from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from harness.report import terminal


def console(width: int = 80, *, tty: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=tty, color_system="truecolor" if tty else None)


def text(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("tty", [False, True])
def test_the_replay_line_is_whole_and_alone(report: dict[str, Any], width: int, tty: bool) -> None:
    out = console(width, tty=tty)
    terminal.print_failures(out, report)
    replay = report["failures"][0]["replay"]
    assert len(replay) > 80
    lines = [line.replace("\x1b[1;36m", "").replace("\x1b[0m", "").rstrip() for line in text(out).splitlines()]
    assert replay in lines


def test_the_card_says_what_the_page_says(report: dict[str, Any]) -> None:
    out = console()
    terminal.print_failures(out, report)
    shown = text(out)
    joined = " ".join(shown.replace("│", " ").split())
    assert "conv_prefill / packed_equals_alone / over budget" in joined
    assert "optimized, bfloat16 on cpu; found by case 17" in joined
    assert report["failures"][0]["sentence"] in joined
    assert "α differs <script>alert('x')</script> & red end" in joined
    assert "expected 0.5 1.25 -3 1e-09 inf nan" in joined
    assert "got 0.5 nan -3.5 1e-09 inf nan" in joined
    assert "20 earlier lines in the report" in joined
    assert "ValueError: no" in joined


def test_expected_and_got_are_aligned(report: dict[str, Any]) -> None:
    out = console()
    terminal.print_failures(out, report)
    lines = text(out).splitlines()
    at = next(i for i, line in enumerate(lines) if "expected" in line)
    expected, got = lines[at], lines[at + 1]
    assert expected.index("1.25") + 4 == got.index("nan") + 3
    assert expected.index(" -3 ") + 3 == got.index("-3.5") + 4


@pytest.mark.parametrize("width", [40, 60, 80])
def test_nothing_but_the_replay_line_is_wider_than_the_terminal(report: dict[str, Any], width: int) -> None:
    report["failures"][0]["rows"][0] |= {"expected": [1.2345e-10] * 12, "got": [-1.2345e-10] * 12}
    report["failures"][0]["sentence"] = "2 sequences of 3 tokens"
    out = console(width)
    terminal.print_failures(out, report)
    wide = [line for line in text(out).splitlines() if len(line.rstrip()) > width]
    assert wide == [report["failures"][0]["replay"]]
    assert text(out).count("-1.2345e-10") == 12


def test_no_colour_codes_unless_a_terminal_reads_them(report: dict[str, Any]) -> None:
    out = console()
    terminal.print_failures(out, report)
    terminal.print_summary(out, report, [])
    assert "\x1b" not in text(out)


def test_markup_in_a_message_is_text(report: dict[str, Any]) -> None:
    report["failures"][0]["message"] = "[bold]x[/] [/nothing]"
    out = console()
    terminal.print_failures(out, report)
    assert "[bold]x[/] [/nothing]" in text(out)


def test_a_failure_without_rows_details_or_replay(failure: dict[str, Any]) -> None:
    out = console()
    terminal.print_failure(out, failure | {"rows": [], "details": "", "replay": ""})
    assert "Run this one case again" not in text(out)


def test_summary(report: dict[str, Any]) -> None:
    report["errors"] = ["collection of properties/test_x.py\nImportError: no"]
    out = console()
    path = "out/" + "x" * 100 + "/report.html"
    terminal.print_summary(out, report, [path])
    shown = text(out)
    assert "conv_prefill  optimized       1       1      1        2    120      3.8" in shown
    assert "1 required cell: the probe failed for <float16>" in shown
    assert shown.index("1 required cell:") < shown.index("1 cell: not claimed")
    assert "ImportError: no" in shown
    assert "ledger entry gone-0 matches no failure" in " ".join(shown.split())
    assert "1 of 5 cells failed, and 1 required did not run" in shown
    assert "seed 7" in shown
    assert f"  {path}" in shown.splitlines()


def test_summary_of_a_run_that_held(held: dict[str, Any]) -> None:
    out = console()
    terminal.print_summary(out, held, [])
    assert "All that was required ran and held" in text(out)
    assert "Not run" not in text(out)


def test_one_fault_in_several_dtypes_is_one_card(report: dict[str, Any]) -> None:
    first = report["failures"][0]
    report["failures"] += [
        first | {"dtype": "float16", "replay": "replay the float16 one " + "x" * 90},
        first | {"symptom": "crashed", "replay": "replay another fault"},
    ]
    out = console()
    terminal.print_failures(out, report)
    lines = text(out).splitlines()
    assert sum("Smallest failing batch" in line for line in lines) == 2
    assert lines[lines.index("The same symptom in float16 on cpu:") + 1] == report["failures"][1]["replay"]
    assert "replay another fault" in lines
