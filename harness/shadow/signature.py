"""How a function of somebody's engine is called, and what its calls mean in an operator's contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from harness.shadow.observation import Observation
from harness.shadow.seen import Seen

Translate = Callable[[Seen], Observation]


@dataclass(frozen=True)
class Signature:
    """One way of being called.

    operators: what its calls can be judged as. required, absent: parameter names that a target must and must not have;
    accepts: what else tells it from its likes. pools: parameters that are state pools, each with the parameter that holds
    the slots of a call; only these rows are copied. updated: parameters that a call changes in place. reads: attributes of
    an argument that are inputs too. fields: attributes of the result, where it is an object. translate: from copies to the
    contract; it runs after the call, on copies, and may wait for the device.
    """

    name: str
    operators: tuple[str, ...]
    about: str
    translate: Translate
    required: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    pools: Mapping[str, str] = field(default_factory=dict)
    updated: tuple[str, ...] = ()
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    accepts: Callable[[inspect.Signature], bool] = field(default=lambda _: True, compare=False)

    def fits(self, target: inspect.Signature) -> bool:
        names = set(target.parameters)
        return self.required <= names and not self.absent & names and self.accepts(target)
