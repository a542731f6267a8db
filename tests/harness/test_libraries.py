"""A subject whose library is not there, or too old, is not run, and the reason names what it needs."""

from __future__ import annotations

import importlib.metadata

import pytest

from harness import libraries


@pytest.mark.parametrize(
    ("requirement", "reason"),
    [
        ("pytest", ""),
        ("pytest>=8.4", ""),
        ("pytest>=9999.1", "the subject needs the library pytest 9999.1 or newer, installed is"),
        ("nowhere_to_be_found", "the subject needs the library nowhere_to_be_found, which is not installed"),
        ("nowhere_to_be_found.part>=2", "nowhere_to_be_found.part 2 or newer, which is not installed"),
        # On the path, but nobody says how old it is.
        ("harness>=9999", ""),
    ],
)
def test_the_reason_names_what_is_needed(requirement: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries.missing.cache_clear()
    monkeypatch.setattr(libraries, "packages_distributions", _without_us)
    assert reason in libraries.missing(requirement)
    assert bool(libraries.missing(requirement)) == bool(reason)


def _without_us() -> dict[str, list[str]]:
    return {name: of for name, of in importlib.metadata.packages_distributions().items() if name != "harness"}


def test_versions_are_compared_as_numbers() -> None:
    assert libraries._numbers("0.10.2.post1") > libraries._numbers("0.9")
    assert libraries._numbers("2.11.0+cu130") == (2, 11, 0)


def test_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="library: got 'flashinfer==1'"):
        libraries.missing("flashinfer==1")
