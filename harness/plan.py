"""What one run of ``sluicegate verify`` is asked to do, and the cells that follow from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import interpreter, libraries, operators, tiers
from harness.cell import CellSpec
from harness.context import GROUPS, Property
from harness.subjects import Capabilities, Subject, registered


@dataclass(frozen=True)
class Plan:
    """The command line, resolved. It travels to the workers as JSON."""

    operators: tuple[str, ...]
    subjects: tuple[Subject, ...]
    tier: str
    groups: tuple[str, ...]
    device: str
    seed: int
    out: str
    cases: int | None = None
    case_timeout: float = 60.0

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Plan:
        data: dict[str, Any] = json.loads(path.read_text())
        data["subjects"] = tuple(Subject(**s) for s in data["subjects"])
        data["operators"], data["groups"] = tuple(data["operators"]), tuple(data["groups"])
        return cls(**data)

    def subjects_of(self, operator: str) -> list[Subject]:
        """Those given on the command line take the place of all that are registered."""
        given = [s for s in self.subjects if s.operator == operator]
        return given or registered(operator)


@dataclass(frozen=True)
class Planned:
    """A cell that is to run, or the reason why it cannot."""

    spec: CellSpec
    not_run: str = ""
    required: bool = True


def cells(plan: Plan, operator: str, properties: Iterable[Property]) -> list[tuple[Property, Planned]]:
    """Every cell of one operator: property x subject x dtype, with its cases, its seed, and why it may not run."""
    wanted = [
        p
        for p in properties
        if p.group in plan.groups
        and plan.device in p.devices
        and not (plan.tier == "quick" and p.name in tiers.NOT_QUICK)
    ]
    total = plan.cases or tiers.CASES[plan.tier][plan.device][operator]
    drafts: list[tuple[Property, Planned, tiers.Share]] = []
    for subject in plan.subjects_of(operator):
        function = subject.load()
        capabilities = Capabilities.of(function)
        for prop in wanted:
            for dtype in operators.get(operator).dtypes:
                if prop.dtypes is not None and dtype not in prop.dtypes:
                    continue
                spec = CellSpec(
                    operator=operator,
                    subject=subject.name,
                    target=subject.target,
                    property=prop.name,
                    device=plan.device,
                    dtype=dtype,
                    examples=0,
                    seed=plan.seed,
                    check_memory="memory" in plan.groups,
                )
                reason, required = _obstacle(plan, capabilities, dtype)
                nothing = prop.nothing_to_check(operator, function)
                if nothing and not reason:
                    reason, required = nothing, False
                share = tiers.Share(prop.weight * capabilities.case_share, prop.examples)
                drafts.append((prop, Planned(spec, reason, required), share))
    runnable = [i for i, (_, planned, _) in enumerate(drafts) if not planned.not_run]
    counts = dict(zip(runnable, tiers.distribute(total, [drafts[i][2] for i in runnable]), strict=True))
    out = []
    for i, (prop, planned, _) in enumerate(drafts):
        spec = CellSpec(**{**asdict(planned.spec), "examples": counts.get(i, 0)})
        out.append((prop, Planned(spec, planned.not_run, planned.required)))
    return out


def _obstacle(plan: Plan, capabilities: Capabilities, dtype: str) -> tuple[str, bool]:
    """Why a cell cannot run, and whether that fails the tier. What a subject does not claim is not required of it."""
    if plan.device not in capabilities.devices:
        return f"the subject does not run on {plan.device}", False
    if dtype not in capabilities.dtypes:
        return f"the subject does not take {dtype}", False
    if plan.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "no CUDA device", True
        if torch.cuda.get_device_capability() < capabilities.min_capability:
            return f"the subject needs compute capability {capabilities.min_capability}", False
        if torch.cuda.get_device_capability() > capabilities.max_capability:
            return f"the subject needs compute capability up to {capabilities.max_capability}", False
    if capabilities.library and (reason := libraries.missing(capabilities.library)):
        return reason, False
    untrusted = interpreter.probe().get(dtype)
    if untrusted:
        return untrusted, True
    return "", True


def check_groups(names: Iterable[str]) -> tuple[str, ...]:
    names = tuple(names)
    for name in names:
        if name not in GROUPS:
            raise ValueError(f"--properties: got {name!r}, expected some of {', '.join(GROUPS)}")
    return names
