"""docs/shadow.md is tried: its examples run, its command line and its table say what there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from harness.shadow.launch import Wanted
from harness.shadow.signatures import BY_NAME

PAGE = (Path(__file__).resolve().parents[2] / "docs/shadow.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", [b for b in BLOCKS if "tensorrt_llm" not in b], ids=["whole", "adapt"])
def test_examples_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/shadow.md", "exec"), {"__name__": "docs_shadow"})


def test_the_first_example_asks_for_what_is_not_installed_here() -> None:
    (block,) = (b for b in BLOCKS if "tensorrt_llm" in b)
    with pytest.raises(ValueError, match="cannot import 'tensorrt_llm"):
        exec(compile(block, "docs/shadow.md", "exec"), {"__name__": "docs_shadow"})


def test_the_command_line_is_understood() -> None:
    (line,) = re.findall(r"^\$ (python -m harness.shadow .*)$", PAGE, re.MULTILINE)
    words = shlex.split(line)
    wanted = Wanted.parse(words[words.index("--target") + 1])
    assert wanted.operator == "conv_update"
    assert words[words.index("--") + 1] == "-m"


def test_the_table_names_every_signature() -> None:
    first = "\n".join(re.findall(r"^\| (`[^|]*)\|", PAGE, re.MULTILINE))
    named = set(re.findall(r"`([^`]+)`", first))
    short = {name for name in BY_NAME if name.startswith("contract.") or name.endswith(".kv")}
    assert named == (set(BY_NAME) - short) | {"contract.*", ".kv"}
