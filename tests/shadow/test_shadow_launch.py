"""``python -m harness.shadow``: a program that nobody edits, with shadows in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.shadow.__main__ import main

ROOT = Path(__file__).resolve().parents[2]

ENGINE = """
import torch

def chunks(cu_seqlens, chunk_size):
    tokens = int(cu_seqlens[-1])
    size = -(-tokens // chunk_size)
    return torch.arange(size, dtype=torch.int32), torch.zeros(size, dtype=torch.int32)
"""
SERVER = """
import sys
import torch
from their_engine import chunks
for total in (8, 16):
    chunks(torch.tensor([0, total], dtype=torch.int32), 8)
if "wrong" in sys.argv:
    chunks(torch.tensor([0, 5, 10], dtype=torch.int32), 8)
print("served", sys.argv[1:])
sys.exit(7)
"""


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "their_engine.py").write_text(ENGINE)
    (folder / "server.py").write_text(SERVER)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "harness.shadow", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_module_is_wrapped_when_the_program_imports_it(tmp_path: Path) -> None:
    done = run(tmp_path, "--target", "their_engine:chunks=chunk_metadata", "--out", "seen", "--", "server.py", "wrong")
    assert done.returncode == 7, done.stderr
    assert done.stdout == "served ['wrong']\n"
    assert "their_engine:chunks is taken as tensorrt_llm.chunk_indices" in done.stderr
    assert "call 3: wrong metadata" in done.stderr
    assert (tmp_path / "seen/mismatch-1.json").exists()
    assert f"sluicegate replay {tmp_path}/seen/mismatch-1.json" in done.stderr


def test_targets_of_the_environment_and_such_as_cannot_be_wrapped(tmp_path: Path) -> None:
    targets = "their_engine:chunks; nowhere:f=gdn_decode; their_engine:absent=gdn_decode"
    done = run(tmp_path, "--", "-m", "server", SLUICEGATE_SHADOW=targets)
    assert done.returncode == 7, done.stderr
    assert done.stdout == "served []\n"
    assert "their_engine:chunks is taken as" in done.stderr
    assert "their_engine:absent is not shadowed" in done.stderr
    assert "has no attribute 'absent'" in done.stderr
    assert "nowhere:f was not shadowed: its module was never imported" in done.stderr
    assert not (tmp_path / "shadow").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "their_engine:chunks"), "put -- before the program"),
        (("--target", "their_engine", "--", "server.py"), "expected module:function"),
        (("--", "server.py"), "give --target"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(list(arguments))
    assert said in capsys.readouterr().err
