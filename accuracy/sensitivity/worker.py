"""Tries faults one after the other in this process, each result a file; another process watches."""

from __future__ import annotations

import json
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from accuracy.gate import Rule
from accuracy.outcome import Run
from accuracy.sensitivity import faults
from accuracy.sensitivity.setup import Words, read
from accuracy.sensitivity.trial import Distance, Setup, answered, farthest, judge
from accuracy.tokens import through_engine
from harness.files import write_whole
from serving.kernel_set import KernelSet
from serving.model import HybridModel


def result_file(out: Path, id: str) -> Path:
    return out / "faults" / f"{id}.json"


def write(out: Path, id: str, record: dict[str, Any]) -> None:
    path = result_file(out, id)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"id": id, "kind": faults.kind_of(id), "wrong": faults.known()[id]}
    write_whole(path, json.dumps(head | record, indent=2) + "\n")


def run(words: Words, ids: Sequence[str], out: Path, rule: Rule, seconds: float, current: Path | None = None) -> None:
    """Try these until the time is over. What is being tried is in the file `current`, for whoever watches.

    Several processes may do so in one folder once its baseline is complete, each with faults and a file of its own. Ends after a
    fault that raised on a GPU, whose context may be unusable.
    """
    deadline = time.monotonic() + seconds
    current = current or out / "current"
    setup = read(words)
    baseline = answered(setup, setup.answering(), out / "runs" / "right.jsonl", "right")
    logits = through_engine(setup.answering(), setup.told)
    right = noise(setup, words, logits, out)
    for id in ids:
        if time.monotonic() > deadline:
            return
        write_whole(current, id)
        begun = time.monotonic()
        try:
            found = tried(setup, id, baseline, logits, right, rule, out)
        except Exception as error:  # noqa: BLE001  # a fault may do anything; what it did is its result
            last = traceback.extract_tb(error.__traceback__)[-1]
            found = {"broke": f"raised {type(error).__name__}", "message": f"{error} ({last.name}, line {last.lineno})"}
        write(out, id, found | {"seconds": round(time.monotonic() - begun, 1)})
        current.unlink()
        if "broke" in found and setup.model.device.type == "cuda":
            return


def tried(
    setup: Setup, id: str, baseline: Run, logits: Sequence[Tensor], right: Distance, rule: Rule, out: Path
) -> dict[str, Any]:
    """One fault, through the gate and through the token check."""
    with (
        tempfile.TemporaryDirectory() as folder,
        faults.planted(id, setup.model, Path(folder)) as (model, make),
    ):
        new = answered(setup, setup.answering(model, make), out / "runs" / f"{id}.jsonl", id)
        distance = Distance.between(logits, through_engine(setup.answering(model, make), setup.told))
    return judge(baseline, new, distance, right, rule)


def noise(setup: Setup, words: Words, logits: Sequence[Tensor], out: Path) -> Distance:
    """The most that right ways of computing the same differ by: other kernels, another batch, other chunks.

    A folder has one setup, so what an earlier process found there holds.
    """
    path = out / "right.json"
    if path.exists():
        return Distance(**json.loads(path.read_text())["farthest"])
    other = "references" if words.kernels.startswith("oracle") else "oracle"
    kernels = HybridModel(setup.model.config, setup.model.weights, KernelSet.named(other))
    ways = {
        other: replace(setup, model=kernels, graphs=False),
        "a quarter of the batch": replace(setup, concurrency=max(1, setup.concurrency // 4)),
        **other_chunks(setup),
    }
    found = {name: Distance.between(logits, through_engine(way.answering(), setup.told)) for name, way in ways.items()}
    right = farthest(list(found.values()))
    record = {"farthest": asdict(right), "ways": {name: asdict(one) for name, one in found.items()}}
    write_whole(path, json.dumps(record, indent=2) + "\n")
    return right


def other_chunks(setup: Setup) -> dict[str, Setup]:
    """The same prompts cut where the setup does not cut them."""
    if setup.chunk_budget is None:
        return {"small chunks": replace(setup, chunk_budget=max(64, setup.concurrency), seed=1)}
    return {"large chunks": replace(setup, chunk_budget=None, seed=1)}
