"""Against a published score, of which no single answer is known: weaker than the paired gate, and it says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from accuracy.gate import Filter, Verdict
from accuracy.outcome import Run
from accuracy.statistics import unpaired_detectable, unpaired_interval

FOLDER = Path(__file__).parent / "baselines"
_FIELDS = {"model", "task", "accuracy", "n", "metric", "prompting", "source"}


@dataclass(frozen=True)
class Published:
    """A score somebody published.

    Attributes:
        accuracy: a share. n: questions it was measured on. metric: the filter, as far as it is said.
        prompting: what is known of how it was asked. source: where it stands.
    """

    id: str
    model: str
    task: str
    accuracy: float
    n: int
    metric: str
    prompting: str
    source: str


def published(folder: Path = FOLDER) -> dict[str, Published]:
    """All references of these files, by id.

    Raises ValueError that names file and id for one that is incomplete, has no source, or comes twice.
    """
    found: dict[str, Published] = {}
    for path in sorted(folder.glob("*.yaml")):
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"baselines: {path.name} has no mapping of ids")
        for name, entry in content.items():
            if not isinstance(entry, dict) or set(entry) != _FIELDS:
                raise ValueError(f"baselines: {path.name}: {name} has not exactly {', '.join(sorted(_FIELDS))}")
            if name in found:
                raise ValueError(f"baselines: {path.name}: {name} is there already")
            one = Published(id=name, **entry)
            if not 0 < one.accuracy < 1 or one.n < 1 or not str(one.source).strip():
                raise ValueError(f"baselines: {path.name}: {name} needs an accuracy in (0, 1), n from 1, and a source")
            found[name] = one
    return found


@dataclass(frozen=True)
class Unpaired:
    """low, high: Newcombe's interval of the difference, new less published. detectable: the smallest loss seen in 80 % of runs."""

    verdict: Verdict
    why: str
    reference: Published
    accuracy: float
    n: int
    low: float
    high: float
    detectable: float
    note: str = "unpaired: weaker than a comparison with a stored run; prompts and chance of the reference are unknown"


def against(
    reference: Published, run: Run, margin: float = 0.01, alpha: float = 0.025, metric: Filter = "strict"
) -> Unpaired:
    """Judge a run by a published score.

    Raises ValueError for a run that is not complete or of another task.
    """
    if run.info.task != reference.task:
        raise ValueError(f"baseline: {reference.id} is of task {reference.task}, the run of {run.info.task}")
    if not run.complete:
        raise ValueError(f"run: {len(run.outcomes)} of {run.info.questions} questions are answered; let it go on")
    n = run.info.questions
    accuracy = run.accuracy(flexible=metric == "flexible")
    low, high = unpaired_interval(accuracy * n, n, reference.accuracy * reference.n, reference.n, 1 - 2 * alpha)
    detectable = unpaired_detectable(reference.accuracy, n, reference.n, alpha)
    verdict: Verdict
    if high < 0:
        verdict = "regression"
    elif low > 0:
        verdict = "improved"
    elif low > -margin:
        verdict = "as before"
    else:
        verdict = "too little power to say"
    why = (
        f"{100 * accuracy:.2f} % against {100 * reference.accuracy:.2f} %: the difference is between {100 * low:+.2f} and"
        f" {100 * high:+.2f} points; a loss below {100 * detectable:.2f} points is missed more often than one run in five"
    )
    return Unpaired(verdict, why, reference, accuracy, n, low, high, detectable)
