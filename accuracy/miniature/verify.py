"""``python -m accuracy.miniature.verify``: the full model's share of `make verify`.

Two questions, each with what it can see. Does the model, in the engine, still answer? Held-out problems are compared one by one with
the stored run in `baseline.jsonl`. Do the kernels compute what the references compute, in the place where the model needs them? Both
are made to say the same worked solutions, through prefills and decodes, and every next token is compared.

On a GPU the optimized kernels answer all problems. Triton's interpreter would take six seconds for each, so on a CPU the references
answer a part of them, which tests the engine and the model, and the optimized kernels say the beginnings of a few solutions.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from accuracy import answerers, outcome, report, session, tasks, words
from accuracy.answering import Answering, Tokenizer
from accuracy.asking import Asking
from accuracy.gate import Rule
from accuracy.sensitivity.trial import Distance, told
from accuracy.tokens import Told, through_engine
from harness.cli.device import DeviceChoice, choose

HERE = Path(__file__).parent
CHECKPOINT, BASELINE = HERE / "checkpoint", HERE / "baseline.jsonl"


@dataclass(frozen=True)
class Share:
    """How much of it fits: measured, see docs/accuracy.md.

    Attributes:
        kernels: that answer. questions, concurrency, margin, noise: of the gate. told, cut: solutions of the token check, and how
            many tokens of each. worst: KL of a token in nats that no rounding reaches.
    """

    kernels: str
    questions: int
    concurrency: int
    margin: float
    noise: float
    told: int
    cut: int
    worst: float


SHARES = {
    "cpu": Share("oracle", 256, 64, 0.03, 0.0025, 12, 16, 1e-9),
    # Three times the most that right ways to compute these solutions differed by on an H100, 0.0017 nats on one token.
    "cuda": Share("optimized", 1319, 128, 0.01, 0.02, 100, 256, 0.005),
}


def first(run: outcome.Run, questions: int) -> outcome.Run:
    """The same run of fewer questions. Each was answered by itself, so this is what it would have been."""
    kept = {index: one for index, one in run.outcomes.items() if index < questions}
    return outcome.Run(replace(run.info, questions=questions), kept)


def ready(folder: Path, baseline: Path) -> None:
    """Raises ValueError that says which file is missing, and what makes it."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no checkpoint; python -m accuracy.miniature.train {folder} on a GPU makes one")
    if not baseline.is_file():
        raise ValueError(
            f"{baseline}: no baseline; sluicegate accuracy --model {folder} --kernels oracle --dtype float32"
            f" --save-baseline {baseline} makes one"
        )


def gate(share: Share, device: str, folder: Path, baseline: Path, out: Path) -> session.Judged:
    """Answer, compare, and write the report."""
    from rich.console import Console

    from harness.cli.progress import StagesBar

    task = tasks.miniature().first(share.questions)
    rule = Rule(margin=share.margin, noise=share.noise)
    before = words.beforehand(len(task.asked), rule)
    typer.echo(before)
    stored = first(outcome.load(baseline), share.questions)
    session.early(stored, task)
    asking = Asking(model=str(folder), kernels=share.kernels, device=device, concurrency=share.concurrency)
    (party,) = asking.parties(task, None)
    with StagesBar(Console(), "miniature", "gate") as bar:
        runs = session.passes(party, task, out, ("cold",), bar.advance)
    (found,) = session.judged(runs, party.label, stored, f"baseline, {stored.info.kernels}", rule)
    name = "python -m accuracy.miniature.verify"
    report.save(report.Session(name, task, rule, before, {found.new: runs["cold"]}, [found]), out)
    return found


def tokens(share: Share, device: str, folder: Path, kernels: str = "optimized") -> Distance:
    """The kernels against the references, on the beginnings of worked solutions."""
    text = Tokenizer(folder / "tokenizer.json")
    questions = [Told(one.prompt, one.answer[: share.cut]) for one in told(tasks.miniature(), text, share.told)]
    longest = max(len(one.prompt) + len(one.answer) for one in questions)

    def engine(of: str) -> Answering:
        return answerers.engine(answerers.Engine(str(folder), of, device, "auto", share.told, max_length=longest))

    return Distance.between(*(through_engine(engine(of), questions) for of in ("oracle", kernels)))


def main(
    device: Annotated[DeviceChoice, typer.Option(help="auto: cuda where there is one.")] = "auto",
    checkpoint: Annotated[Path, typer.Option(help="Of the miniature.")] = CHECKPOINT,
    baseline: Annotated[Path, typer.Option(help="The stored run.")] = BASELINE,
    kernels: Annotated[str, typer.Option(help="For the token check.")] = "optimized",
    out: Annotated[Path, typer.Option(help="Of the report; what was there is removed.")] = Path("out/latest/miniature"),
) -> None:
    """Ask the miniature whether it answers as before, and whether the kernels agree with the references.

    Exit status 0: both. 1: one of them not. 3: too little power to say. 2: a file is missing.
    """
    begun = time.monotonic()
    try:
        ready(checkpoint, baseline)
        chosen = choose(device)
        share = SHARES[chosen]
        for path in (out / "runs").glob("*.jsonl"):
            path.unlink()
        # Two processes for two cores; one GPU does one thing after the other.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as beside:
            said = beside.submit(tokens, share, chosen, checkpoint, kernels) if chosen == "cpu" else None
            judged = gate(share, chosen, checkpoint, baseline, out)
            typer.echo(report.said(judged, 5))
            distance = said.result() if said else tokens(share, chosen, checkpoint, kernels)
    except ValueError as error:
        typer.echo(f"accuracy.miniature.verify: {error}", err=True)
        raise typer.Exit(2) from error
    agree = distance.worst <= share.worst
    typer.echo(
        f"{kernels} and references, {share.told} solutions through prefill and decode: worst KL {distance.worst:.2g},"
        f" at most {share.worst:g}; the likeliest token is the same in {100 * distance.agreement:.2f} %"
        + ("" if agree else ": THEY DIFFER")
    )
    verdict = judged.found.verdict
    done = f"{time.monotonic() - begun:.0f} s"
    typer.echo(f"miniature: {verdict}, kernels {'agree' if agree else 'DIFFER'}; {done}; {out / 'report.html'}")
    if verdict == "regression" or not agree:
        raise typer.Exit(1)
    raise typer.Exit(3 if verdict == "too little power to say" else 0)


if __name__ == "__main__":
    typer.run(main)
