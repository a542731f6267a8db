"""``sluicegate faults --judging``: plant faults in the judging code and see which of the repository's tests finds each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def judge(ids: Sequence[str], *, seed: int, workers: int, time_limit: float, out: Path) -> int:
    """Run, print and write ``faults.json``; the exit status. ``ids``: these faults, all where none is given.

    Raises ValueError for an unknown id, an anchor that is not there once, and where there is no checkout.
    """
    from rich.console import Console

    from harness.cli.progress import VerdictsBar
    from harness.faults import matrix
    from harness.faults.judging import checkout, model, runner
    from harness.faults.verdict import Settings, Verdict

    known = model.load()
    unknown = set(ids) - {fault.id for fault in known}
    if unknown:
        raise ValueError(f"--fault: got {', '.join(sorted(unknown))}, which are no faults of the judging code")
    faults = [fault for fault in known if not ids or fault.id in ids]
    checkout.check(faults)
    # Absolute, because the tests run elsewhere. Some of them wait for workers that hang, so they get twice the time.
    settings = Settings(device="cpu", seed=seed, folder=(out / "judging").resolve(), time_limit=2 * time_limit)
    console = Console(file=sys.stdout)
    saved = matrix.Saved(settings, len(faults), out / "faults.json")
    with VerdictsBar(console, f"in the judging code, seed {seed}", len(faults)) as progress:

        def listen(verdict: Verdict) -> None:
            saved.add(verdict)
            progress.advance(verdict)

        verdicts = runner.run(faults, settings, workers=workers, listener=listen)
    report = saved.write(verdicts)
    matrix.show(console, verdicts)
    text = matrix.conclusion(verdicts, report["wall_seconds"], "judging code")
    console.print(text, highlight=False, style="bold")
    console.print(f"{saved.path}; the same again with --seed {seed}", highlight=False, soft_wrap=True)
    return matrix.exit_status(verdicts)
