"""What an answer to a GSM8K question says, and whether it is right.

The definition is that of the task `gsm8k`, version 3, of the language model evaluation harness (lm-eval): its two filters and its exact
match with what it ignores. The expressions are the task's, because they are the definition.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: What a filter yields where it finds nothing.
INVALID = "[invalid]"
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = tuple(re.compile(pattern) for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"))


def strict(text: str) -> str:
    """The number behind the first ``####``."""
    found = _STRICT.search(text)
    return found[1].strip() if found else INVALID


def flexible(text: str) -> str:
    """The last thing that looks like a number."""
    found = [match[0] for match in _FLEXIBLE.finditer(text)]
    return found[-1].strip() if found else INVALID


def normalised(text: str) -> str:
    """Without commas, dollars, whatever stands before ``####``, and one trailing dot."""
    for pattern in _IGNORED:
        text = pattern.sub("", text)
    return text.lower()


@dataclass(frozen=True)
class Grade:
    """strict, flexible: what each filter took, normalised. right, right_flexible: whether it is the target."""

    strict: str
    flexible: str
    right: bool
    right_flexible: bool


def grade(answer: str, target: str) -> Grade:
    """Grade an answer by a worked solution that ends in ``#### n``, or by the number alone.

    Raises ValueError for a target that no answer could match.
    """
    wanted = normalised(target).strip()
    if not re.fullmatch(r"-?[0-9.]+", wanted):
        raise ValueError(f"target: got {target[-60:]!r}, expected a number, or a solution that ends in '#### <number>'")
    taken, last = normalised(strict(answer)), normalised(flexible(answer))
    return Grade(taken, last, taken == wanted, last == wanted)
