"""``sluicegate accuracy``: questions through the full model, and a verdict that says what it could have seen."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.device import DeviceChoice

if TYPE_CHECKING:
    from rich.console import Console

    from accuracy.asking import Asking
    from accuracy.gate import Rule
    from accuracy.outcome import Run
    from accuracy.tasks import Task
    from accuracy.unpaired import Published

REGRESSION, USAGE, POWERLESS, INTERRUPTED = 1, 2, 3, 130
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Metric = Literal["strict", "flexible"]


def command(
    model: Annotated[str | None, typer.Option(help="Folder of a checkpoint, for Sluicegate's own engine.")] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server instead, as http://host:8000/v1. A key: OPENAI_API_KEY."),
    ] = None,
    served: Annotated[str, typer.Option(help="The model's name at that server; its first by default.")] = "",
    lm_eval_model: Annotated[
        str | None, typer.Option(help="A model of lm-eval instead: hf, vllm, sglang ...; with --model-args.")
    ] = None,
    model_args: Annotated[str, typer.Option(help="lm-eval's arguments of it: pretrained=...,dtype=...")] = "",
    task: Annotated[
        str,
        typer.Option(
            help="miniature: 1,319 problems of our own; gsm8k, gsm8k_platinum, gsm8k_cot: lm-eval's; or a file (--export)."
        ),
    ] = "miniature",
    gsm8k: Annotated[
        Path | None, typer.Option(help="Folder with train.jsonl and test.jsonl in place of the hub's data.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many questions.", min=1)] = None,
    baseline: Annotated[Path | None, typer.Option(help="A stored run to compare with, question by question.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Compare with these kernels, which are run first: references, oracle ...")
    ] = None,
    published: Annotated[
        str | None, typer.Option(help="Compare with a published score, by its id in accuracy/baselines: weaker.")
    ] = None,
    save_baseline: Annotated[Path | None, typer.Option(help="Store the first pass here, for --baseline.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Ask nobody: compare two stored runs, baseline first.")
    ] = None,
    kernels: Annotated[
        str, typer.Option(help="references, oracle or optimized; then, after commas, operator=name or module:function.")
    ] = "optimized",
    device: Annotated[DeviceChoice, typer.Option(help="auto: cuda where there is one.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="auto: bfloat16 on a GPU, float32 on a CPU.")] = "auto",
    passes: Annotated[
        str, typer.Option(help="cold, warm (on the caches that a pass before left), or cold,warm.")
    ] = "cold",
    concurrency: Annotated[int, typer.Option(help="Most requests at once.", min=1)] = 32,
    chunk_budget: Annotated[
        int | None, typer.Option(help="Most tokens in a step; longer prompts are cut. 512, on a GPU 8192.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the slots that requests get; 0: the last freed.", min=0)] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds a server may take for one answer.", min=1)] = 600.0,
    margin: Annotated[
        float, typer.Option(help="The loss that must not be missed, as a share.", min=1e-4, max=0.5)
    ] = 0.01,
    alpha: Annotated[float, typer.Option(help="Level of each test: false alarms at most.", min=1e-6, max=0.5)] = 0.025,
    noise: Annotated[
        float | None,
        typer.Option(help="Share of answers that flip between right runs; 0.02, in float32 0.0025.", min=0.0, max=0.9),
    ] = None,
    metric: Annotated[Metric, typer.Option(help="The filter that counts.")] = "strict",
    told: Annotated[
        int,
        typer.Option(
            help="With --against: both kernel sets say so many worked solutions, and every next token is compared.",
            min=0,
        ),
    ] = 0,
    export: Annotated[
        Path | None, typer.Option(help="Write the questions as they are asked, and ask nobody; --task FILE reads them.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs and the report; a run in it goes on.")] = Path(
        "out/accuracy"
    ),
) -> None:
    """Ask the full model a set of questions and compare its answers, one by one, with a baseline's.

    Before anything runs it prints what it can detect and how often it is wrong. Every answer is stored as it comes: after a crash or
    ctrl-C the same command goes on, and its report is that of a run that was never interrupted.

      sluicegate accuracy --model CHECKPOINT --kernels optimized --against references

      sluicegate accuracy --model CHECKPOINT --task gsm8k --save-baseline monday.jsonl

      sluicegate accuracy --base-url http://localhost:8000/v1 --task gsm8k --baseline monday.jsonl

    Exit status 0: as before, improved, or nothing to compare with. 1: a regression. 3: too little power to say. 2: bad usage, or
    nobody to ask. 130: interrupted.
    """
    from accuracy.client import ServerError

    try:
        from accuracy.asking import Asking

        asking = Asking(
            model=model,
            base_url=base_url,
            served=served,
            lm_eval_model=lm_eval_model,
            model_args=model_args,
            kernels=kernels,
            device=device,
            dtype=dtype,
            concurrency=concurrency,
            chunk_budget=chunk_budget,
            seed=seed,
            timeout=timeout,
        )
        code = _run(
            asking,
            task=task,
            gsm8k=gsm8k,
            limit=limit,
            baseline=baseline,
            against=against,
            published=published,
            save_baseline=save_baseline,
            compared=compare,
            passes=passes,
            rule=(margin, alpha, noise, metric),
            told=told,
            export=export,
            out=out,
        )
    except ImportError as error:
        typer.echo(f"sluicegate accuracy: {error}; run make setup", err=True)
        raise typer.Exit(USAGE) from error
    except (ValueError, ServerError) as error:
        typer.echo(f"sluicegate accuracy: {error}", err=True)
        raise typer.Exit(USAGE) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted; what is answered is stored, and the same command goes on", err=True)
        raise typer.Exit(INTERRUPTED) from error
    raise typer.Exit(code)


def _run(
    asking: Asking,
    *,
    task: str,
    gsm8k: Path | None,
    limit: int | None,
    baseline: Path | None,
    against: str | None,
    published: str | None,
    save_baseline: Path | None,
    compared: tuple[Path, Path] | None,
    passes: str,
    rule: tuple[float, float, float | None, Metric],
    told: int,
    export: Path | None,
    out: Path,
) -> int:
    from rich.console import Console

    from accuracy import report, session, tasks, words
    from accuracy.gate import Rule
    from harness.cli.progress import StagesBar

    console = Console(file=sys.stdout)
    if sum(one is not None for one in (baseline, against, published)) > 1:
        raise ValueError("--baseline, --against, --published: got several, expected one of them")
    margin, alpha, noise, metric = rule
    gate = Rule(margin, alpha, asking.noise if noise is None else noise, metric)
    if compared is not None:
        return _compare(console, *compared, gate, out)
    if told and against is None:
        raise ValueError("--told: expected --against KERNELS, to compare tokens with")
    asked = tasks.load(task, limit=limit, gsm8k=gsm8k)
    if export is not None:
        tasks.save(asked, export)
        console.print(f"{export}: {len(asked.asked)} questions of {asked.name}", highlight=False)
        return 0
    kinds = session.kinds(passes)
    parties = asking.parties(asked, against)
    stored = _stored(baseline, published, asked)
    before = words.beforehand(len(asked.asked), gate)
    console.print(before, highlight=False, soft_wrap=True)
    runs: dict[str, Run] = {}
    judged: list[session.Judged] = []
    with StagesBar(console, "accuracy", asked.name) as bar:
        for party in parties:
            # The side that is compared with is asked once; passes are those of what is judged.
            mine = kinds if party is parties[-1] else kinds[:1]
            found = session.passes(party, asked, out, mine, bar.advance)
            runs |= {f"{party.label}, {kind}": run for kind, run in found.items()}
            if party is not parties[-1]:
                name, first = f"{party.label}, {mine[0]}", found[mine[0]]
                stored = (first, name)
            elif stored is not None:
                judged = session.judged(found, party.label, stored[0], stored[1], gate)
            elif len(found) > 1:
                name = f"{party.label}, {kinds[0]}"
                judged = session.judged({kinds[1]: found[kinds[1]]}, party.label, found[kinds[0]], name, gate)
        if told and against is not None:
            bar.advance("tokens", 0, 1)
        tokens = asking.tokens(asked, against, told) if told and against is not None else None
    if save_baseline is not None:
        _copy(parties[-1].file(out, kinds[0]), save_baseline)
    done = report.Session(_command_line(), asked, gate, before, runs, judged, tokens)
    path = report.save(done, out)
    for name, run in runs.items():
        shares = f"{100 * run.accuracy():.2f} % strict, {100 * run.accuracy(flexible=True):.2f} % flexible"
        console.print(f"{name}: {shares}", highlight=False)
    for one in judged:
        console.print(f"\n{one.new} against {one.baseline}", style="bold", highlight=False)
        console.print(report.said(one, 5), highlight=False, soft_wrap=True, markup=False)
    if tokens is not None:
        console.print(f"\n{words.tokens(tokens)}", highlight=False, soft_wrap=True)
    console.print(f"\n{path.with_suffix('.html')}", highlight=False, soft_wrap=True)
    return _code(session.overall(judged))


def _stored(baseline: Path | None, published: str | None, asked: Task) -> tuple[Run | Published, str] | None:
    from accuracy import session, unpaired
    from accuracy.outcome import load

    if baseline is not None:
        run = load(baseline)
        session.early(run, asked)
        return run, f"{baseline.name}: {run.info.kernels}, {run.info.cache}"
    if published is not None:
        known = unpaired.published()
        if published not in known:
            raise ValueError(f"--published: got {published!r}, expected one of {', '.join(known)}")
        if known[published].task != asked.name:
            raise ValueError(f"--published: {published} is of task {known[published].task}, asked for is {asked.name}")
        return known[published], published
    return None


def _compare(console: Console, first: Path, second: Path, rule: Rule, out: Path) -> int:
    from accuracy import report, session, words
    from accuracy.gate import compare
    from accuracy.outcome import load
    from accuracy.tasks import Asked, Task

    old, new = load(first), load(second)
    judged = [session.Judged(second.name, first.name, compare(old, new, rule))]
    before = words.beforehand(new.info.questions, rule)
    task = Task(new.info.task, new.info.task_version, (Asked("", ""),) * new.info.questions)
    done = report.Session(_command_line(), task, rule, before, {first.name: old, second.name: new}, judged)
    path = report.save(done, out)
    console.print(before, highlight=False, soft_wrap=True)
    console.print(report.said(judged[0]), highlight=False, soft_wrap=True, markup=False)
    console.print(str(path.with_suffix(".html")), highlight=False, soft_wrap=True)
    return _code(session.overall(judged))


def _code(verdict: str | None) -> int:
    return {"regression": REGRESSION, "too little power to say": POWERLESS}.get(str(verdict), 0)


def _copy(source: Path, target: Path) -> None:
    from harness.files import write_whole

    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, source.read_text(encoding="utf-8"))


def _command_line() -> str:
    return "sluicegate " + shlex.join(sys.argv[1:])
