"""Which operator is to blame for a wrong answer, and in which layer: found by putting references back in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from serving.kernel_set import OPERATORS, implementation
from serving.model import HybridModel

#: Whether a request's answer is right with the model as it is now. It runs everything up to the end of that request.
Trial = Callable[[], bool]
#: The builder of metadata belongs to the engine, and every step's metadata is compared anyway.
SWAPPED = tuple(name for name in OPERATORS if name != "step_metadata")


@dataclass(frozen=True)
class Blame:
    """What a bisection came to.

    operators: each of which alone, put back to its reference, heals the answer. layer: where the first of them heals it alone;
    None where no single layer does. tried: how many runs it took.
    """

    operators: tuple[str, ...]
    layer: int | None
    tried: int
    reproduced: bool = True
    engine: bool = False

    def __str__(self) -> str:
        if not self.reproduced:
            return "a second run of the same workload answers it right: the mismatch comes and goes"
        if self.engine:
            return "not an operator: with all of them put back to their references the answer is still wrong"
        if not self.operators:
            return "more than one operator: none of them alone heals the answer, all of them together do"
        where = "in more than one layer" if self.layer is None else f"in layer {self.layer}"
        return f"{' or '.join(self.operators)}, {where}"


def blame(model: HybridModel, trial: Trial, listener: Callable[[str, int, int], None] = lambda *_: None) -> Blame:
    """Runs the workload again and again with other operators; the model has its own kernels back afterwards."""
    oracle = {name: implementation(name, "oracle", torch.float64) for name in SWAPPED}
    most = 2 + len(SWAPPED) + len(model.layers)
    tried = 0

    def heals(layers: list[int], names: tuple[str, ...]) -> bool:
        nonlocal tried
        for index, layer in enumerate(model.layers):
            swapped = {name: oracle[name] for name in names} if index in layers else {}
            layer.kernels = own[index].replaced(**swapped)
        listener(f"without {', '.join(names) or 'any change'}", tried, most)
        tried += 1
        return trial()

    everywhere = list(range(len(model.layers)))
    with model.kernels_kept() as own:
        if heals([], ()):
            return Blame((), None, tried, reproduced=False)
        if not heals(everywhere, SWAPPED):
            return Blame((), None, tried, engine=True)
        guilty = tuple(name for name in SWAPPED if heals(everywhere, (name,)))
        alone = next((index for index in everywhere if heals([index], guilty[:1])), None) if guilty else None
        return Blame(guilty, alone, tried)
