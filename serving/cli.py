"""``sluicegate serve``: requests through the engine, every step and every answer compared with the oracle."""

from __future__ import annotations

import random
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.device import DeviceChoice, choose

if TYPE_CHECKING:
    import torch

    from serving.model import HybridModel
    from serving.settings import EngineSettings

MISMATCH, USAGE, INTERRUPTED = 1, 2, 130
Dtype = Literal["float32", "bfloat16"]


def command(
    requests: Annotated[int, typer.Option(help="How many.", min=1)] = 1000,
    model: Annotated[
        str | None,
        typer.Option(help="Folder of a checkpoint, or a random model: tiny (a CPU's default) or small (a GPU's)."),
    ] = None,
    kernels: Annotated[
        str,
        typer.Option(
            help="references, oracle or optimized; then, after commas, operator=name or operator=module:function."
        ),
    ] = "optimized",
    factory: Annotated[
        str, typer.Option("--engine", help="module:function that makes an engine.")
    ] = "serving.engine:Engine",
    arrival: Annotated[
        str, typer.Option(help="all at once, steady:N (a step), bursts:N (at a time) or mixed:N.")
    ] = "mixed:2",
    prompt: Annotated[int | None, typer.Option(help="Most tokens of a prompt; 112, on a GPU 512.", min=1)] = None,
    new: Annotated[int | None, typer.Option(help="Most tokens of an answer; 12, on a GPU 64.", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="Most requests at once; 16, on a GPU 64.", min=1)] = None,
    aborts: Annotated[float, typer.Option(help="As a share of the requests.", min=0.0)] = 0.05,
    preemptions: Annotated[
        float, typer.Option(help="Beside those for want of memory, as a share of the requests.", min=0.0)
    ] = 0.05,
    graphs: Annotated[bool, typer.Option(help="Replay steps of decodes alone; emulated on a CPU.")] = True,
    prefixes: Annotated[bool, typer.Option(help="Keep prefixes and their states for later requests.")] = True,
    judge: Annotated[bool, typer.Option(help="Compare with the oracle; without, only throughput is measured.")] = True,
    dtype: Annotated[Dtype | None, typer.Option(help="float32, on a GPU bfloat16.")] = None,
    device: Annotated[DeviceChoice, typer.Option(help="auto: cuda where there is one.")] = "auto",
    seed: Annotated[int | None, typer.Option(help="Repeats a run exactly; drawn and printed by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of serve.json and serve.svg.")] = Path("out/serve"),
) -> None:
    """Serve requests of ragged lengths, with prefix hits, aborts and preemptions, and assert that nothing is mismatched.

    Each step's metadata is compared with the reference's, each slot and page is accounted for, and each answer is compared, token
    by token, with what the same request gets alone from the references in float64. The first wrong answer is traced to an operator
    and a layer by putting references back in their places.

    Exit status 0: no mismatch. 1: a mismatch. 2: bad usage. 130: interrupted.
    """
    drawn = random.SystemRandom().randrange(2**31) if seed is None else seed
    try:
        chosen = choose(device)
        import torch

        from harness import interpreter
        from serving import presets
        from serving.workload import Mix, moments

        interpreter.repair()
        torch.set_num_threads(1 if chosen == "cpu" else 4)
        gpu = chosen == "cuda"
        mix = Mix(
            requests=requests,
            arrival=arrival,
            prompt=prompt or (512 if gpu else 112),
            new=new or (64 if gpu else 12),
            aborts=aborts,
            preemptions=preemptions,
        )
        name = model or ("small" if gpu else "tiny")
        kind: torch.dtype = getattr(torch, dtype or ("bfloat16" if gpu else "float32"))
        one = presets.model(name, kernels, dtype=kind, device=torch.device(chosen), seed=drawn)
        workload = moments(mix, one.config.vocab_size, one.config.eos_token_ids, drawn)
        settings = engine_settings(
            one, mix.prompt + mix.new, batch or (64 if gpu else 16), graphs=graphs, prefixes=prefixes, judge=judge
        )
        from harness.subjects import load_target

        make = load_target(factory)
    except ValueError as error:
        typer.echo(f"sluicegate serve: {error}", err=True)
        raise typer.Exit(USAGE) from error

    from rich.console import Console

    from harness.cli.progress import StagesBar
    from serving import bisection, serve_report
    from serving.assertion import Assertion, first_wrong_answer
    from serving.truth import ModelTruth

    console = Console(file=sys.stdout)
    command_line = "sluicegate serve " + shlex.join([*_without_seed(sys.argv[1:]), "--seed", str(drawn)])
    words = f"{name}, {str(kind).removeprefix('torch.')}, {kernels} on {chosen}, seed {drawn}"
    traced = None
    try:
        with StagesBar(console, "serve", words) as bar:
            truth = ModelTruth(one) if judge else None
            assertion = Assertion(one, settings, workload, factory=make, truth=truth, listener=bar.advance)
            outcome = assertion.run()
            wrong = first_wrong_answer(outcome.findings)
            if wrong is not None and truth is not None:

                def heals() -> bool:
                    again = Assertion(one, settings, workload, factory=make, truth=truth, only=wrong.request)
                    return not again.run().of("answer")

                traced = bisection.blame(one, heals, bar.advance)
    except KeyboardInterrupt as error:
        console.print(f"interrupted; the same again: {command_line}", style="bold yellow", highlight=False)
        raise typer.Exit(INTERRUPTED) from error
    serve_report.show(console, outcome, wrong, traced)
    path = serve_report.save(
        out, outcome, wrong, traced, command=command_line, model=one, settings=settings, mix=mix, kernels=kernels
    )
    console.print(f"{path}; the same again: {command_line}", highlight=False, soft_wrap=True)
    raise typer.Exit(MISMATCH if outcome.findings else 0)


def engine_settings(
    model: HybridModel, longest: int, batch: int, *, graphs: bool, prefixes: bool, judge: bool
) -> EngineSettings:
    """An engine whose memory is scarce: pages for two fifths of what a full batch could grow to, so that requests give way."""
    from serving.settings import EngineSettings

    page = 16
    pages_a_request = -(-longest // page)
    sizes = tuple(size for size in (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256) if size < batch)
    interval = model.kernels.chunk_size
    return EngineSettings(
        slots=batch + (batch if prefixes else 0),
        pages=max(pages_a_request, 2 * pages_a_request * batch // 5),
        page_size=page,
        max_batch_size=batch,
        max_tokens=max(64, 16 * batch),
        max_length=longest,
        graph_sizes=(*sizes, batch) if graphs else (),
        graphs=("cuda" if model.device.type == "cuda" else "emulated") if graphs else "off",
        snapshot_interval=interval if prefixes else 0,
        record_logits=judge,
        slot_seed=0,
    )


def _without_seed(words: list[str]) -> list[str]:
    """The command line after ``serve``, without a seed."""
    words = words[1:] if words[:1] == ["serve"] else words
    kept = []
    skip = False
    for word in words:
        if not skip and not word.startswith("--seed="):
            skip = word == "--seed"
            if not skip:
                kept.append(word)
        else:
            skip = False
    return kept
