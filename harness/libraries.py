"""What a subject needs that may not be there: a library, and how new it must be."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from importlib.metadata import packages_distributions, version


@cache
def missing(requirement: str) -> str:
    """Why this cannot be had here, empty where it can: ``"flashinfer>=0.7"``, an importable name and its oldest version.

    A module that lies on the path without its metadata is taken for new enough: nobody says how old it is.

    Raises:
        ValueError: a requirement of another form.
    """
    form = re.fullmatch(r"([\w.]+)(?:>=([\d.]+))?", requirement)
    if form is None:
        raise ValueError(f"library: got {requirement!r}, expected a module, or module>=version")
    module, oldest = form.groups()
    named = f"{module} {oldest} or newer" if oldest else module
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return f"the subject needs the library {named}, which is not installed"
    found = _version(module)
    if oldest and found and _numbers(found) < _numbers(oldest):
        return f"the subject needs the library {named}, installed is {found}"
    return ""


def _version(module: str) -> str:
    distributions = packages_distributions().get(module.partition(".")[0], [])
    return version(distributions[0]) if distributions else ""


def _numbers(text: str) -> tuple[int, ...]:
    """The release part of a version, so that 0.7.2.post1 is at least 0.7."""
    release = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in release.group().split(".")) if release else ()
