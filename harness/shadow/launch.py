"""Shadows in a process that one cannot edit, asked for by words: ``module:function=operator``.

``python -m harness.shadow --target ... -- script.py`` and the environment variable ``SLUICEGATE_SHADOW`` end here.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from harness.shadow.api import shadow
from harness.shadow.imports import AFTER_IMPORT

VARIABLE = "SLUICEGATE_SHADOW"


@dataclass(frozen=True)
class Wanted:
    """operator: None leaves it to the signature, which `auto` recognises."""

    target: str
    operator: str | None
    signature: str = "auto"

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """``module:function``, ``module:function=operator`` or ``module:function=operator@signature``.

        Raises:
            ValueError: anything else.
        """
        target, _, rest = text.strip().partition("=")
        operator, _, signature = rest.partition("@")
        module, colon, attribute = target.partition(":")
        if not (module and colon and attribute):
            raise ValueError(
                f"target: got {text!r}, expected module:function=OPERATOR or module:function=OPERATOR@SIGNATURE"
            )
        return cls(target, operator or None, signature or "auto")


#: Targets whose module was never imported, or that could not be wrapped when it was, with the reason.
unwrapped: dict[str, str] = {}


def watch(wanted: Wanted, **options: Any) -> None:
    """Wrap the target now, or when its module is imported; a target that cannot be wrapped is said on stderr."""

    def wrap() -> None:
        unwrapped.pop(wanted.target, None)
        try:
            # Modules that did `from x import f` before are few: this runs as soon as the module is loaded.
            shadow(wanted.target, wanted.operator, signature=wanted.signature, everywhere=True, **options)
        except Exception as error:  # noqa: BLE001 - somebody else's import must not fail for our sake
            unwrapped[wanted.target] = str(error)
            sys.stderr.write(f"sluicegate shadow: {wanted.target} is not shadowed: {error}\n")

    unwrapped[wanted.target] = "its module was never imported"
    AFTER_IMPORT.when(wanted.target.partition(":")[0], wrap)


def from_environment() -> int:
    """Watch what ``SLUICEGATE_SHADOW`` names, separated by semicolons; how many targets that are.

    ``SLUICEGATE_SHADOW_EVERY`` and ``SLUICEGATE_SHADOW_OUT`` are `shadow`'s ``every`` and ``out``.
    """
    wanted = [Wanted.parse(text) for text in os.environ.get(VARIABLE, "").split(";") if text.strip()]
    every = int(os.environ.get(f"{VARIABLE}_EVERY", "1"))
    out = os.environ.get(f"{VARIABLE}_OUT", "shadow")
    for each in wanted:
        watch(each, every=every, out=out, report_at_exit=True)
    return len(wanted)
