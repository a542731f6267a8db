"""Known failures, owned by the adopter: a YAML file of entries with a tracker link (design section 5, Honesty).

    - id: gdn_decode-high_slot-1a2b3c4d      # as printed with the failure
      tracker: https://github.com/acme/engine/issues/17
      reason: fixed in the 2.4 branch

A listed failure does not fail the run. A listed cell that passes does: the entry is stale and hides the next failure.
An id that matches no cell of the run is a warning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from harness.cell import CellResult


@dataclass(frozen=True)
class Entry:
    id: str
    tracker: str
    reason: str = ""


@dataclass
class Ledger:
    entries: tuple[Entry, ...] = ()
    matched: list[Entry] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path | None) -> Ledger:
        """Raises ValueError when an entry lacks its id or its tracker link."""
        if path is None:
            return cls()
        if not path.exists():
            raise ValueError(f"--ledger: no file {path}")
        try:
            loaded = yaml.safe_load(path.read_text()) or []
        except yaml.YAMLError as error:
            raise ValueError(f"--ledger: {path} is not YAML: {error}") from error
        if not isinstance(loaded, list):
            raise ValueError(f"--ledger: {path} holds a {type(loaded).__name__}, expected a list of entries")
        entries = []
        for number, item in enumerate(loaded, 1):
            known = isinstance(item, dict) and set(item) <= {"id", "tracker", "reason"}
            if not known or not item.get("id") or not str(item.get("tracker", "")).startswith(("http://", "https://")):
                raise ValueError(
                    f"--ledger: entry {number} of {path} is {item!r}; expected id, tracker (a link) and optionally reason"
                )
            entries.append(Entry(item["id"], item["tracker"], item.get("reason", "")))
        return cls(tuple(entries))

    def match(self, result: CellResult) -> Entry | None:
        """The entry for this cell's failure, if it is a known one."""
        if result.failure is None:
            return None
        for entry in self.entries:
            if entry.id == result.failure.id:
                self.matched.append(entry)
                return entry
        return None

    def unmatched(self) -> list[Entry]:
        return [e for e in self.entries if e not in self.matched]
