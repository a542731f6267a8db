"""``sluicegate faults --judging``: plant faults in the judging code and see which of the repository's tests finds each."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path


def judge(ids: Sequence[str], *, seed: int, workers: int, time_limit: float, out: Path) -> int:
    """Run, print and write ``faults.json``; the exit status. ``ids``: these faults, all where none is given.

    Raises ValueError for an unknown id, an anchor that is not there once, and where there is no checkout.
    """
    from rich.console import Console

    from harness.cli.faults import _Progress
    from harness.faults import matrix
    from harness.faults.judging import checkout, model, runner
    from harness.faults.trial import Settings

    known = model.load()
    unknown = set(ids) - {fault.id for fault in known}
    if unknown:
        raise ValueError(f"--fault: got {', '.join(sorted(unknown))}, which are no faults of the judging code")
    faults = [fault for fault in known if not ids or fault.id in ids]
    checkout.check(faults)
    # Absolute, because the tests run elsewhere. Some of them wait for workers that hang, so they get twice the time.
    settings = Settings(device="cpu", seed=seed, folder=(out / "judging").resolve(), time_limit=2 * time_limit)
    console, start = Console(file=sys.stdout), time.perf_counter()
    with _Progress(console, f"in the judging code, seed {seed}", len(faults)) as progress:
        verdicts = runner.run(faults, settings, workers=workers, listener=progress.advance)
    seconds = time.perf_counter() - start
    matrix.save(verdicts, settings, seconds, out / "faults.json")
    matrix.show(console, verdicts)
    console.print(matrix.conclusion(verdicts, seconds, "judging code"), highlight=False, style="bold")
    console.print(f"{out / 'faults.json'}; the same again with --seed {seed}", highlight=False, soft_wrap=True)
    return matrix.exit_status(verdicts)
