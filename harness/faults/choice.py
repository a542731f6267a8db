"""Which faults a run of ``sluicegate faults`` tries: nothing that was asked for is left out without a word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.faults import model, mutation
from harness.faults.model import Fault


def choose(
    operators: Sequence[str],
    ids: Sequence[str],
    listed: Path | None,
    *,
    generated: int,
    only_generated: bool,
    mutation_seed: int,
) -> list[Fault]:
    """The faults of a command line; at least one.

    ids: by name, and all of them. listed: a file of ids, which may be of all operators and is searched for those of `operators`.
    Without either: the catalogue, unless it is left out (`only_generated`), and a sample of `generated` mutations.

    Raises ValueError for an unknown name, an id of another operator, and where nothing is left.
    """
    if only_generated and not (generated or ids or listed):
        raise ValueError("--only-generated: got no --generated, expected how many; say --generated 40")
    catalogue = [] if only_generated else model.load()
    mutants = mutation.every() if generated or only_generated else []
    if ids or listed:
        return _named([*catalogue, *mutants], operators, ids, listed)
    named = ", ".join(operators)
    sample = mutation.sample(model.select(mutants, operators), generated, mutation_seed)
    if generated and not sample:
        known = ", ".join(dict.fromkeys(fault.operator for fault in mutants)) or "none"
        raise ValueError(f"--generated: there is no generated fault of {named}, expected an operator out of {known}")
    faults = [*model.select(catalogue, operators), *sample]
    if not faults:
        raise ValueError(
            f"--operator: the catalogue has no fault of {named}; an operator that a package brings comes without, try --generated"
        )
    return faults


def _named(everything: list[Fault], operators: Sequence[str], ids: Sequence[str], listed: Path | None) -> list[Fault]:
    named = model.select(everything, operators, ids) if ids else []
    from_file = model.select(everything, ids=model.listed(listed)) if listed else []
    faults = [*named, *(fault for fault in model.select(from_file, operators) if fault not in named)]
    if not faults:
        raise ValueError(f"--list {listed}: got no fault of {', '.join(operators)}, expected one at least")
    return faults
