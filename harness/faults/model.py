"""What a planted fault is, and the catalogue: faults as data, one YAML file an operator.

A file holds ``operator``, ``subject`` (``module:function``, the default of its faults) and ``faults``, a list of
entries with the fields of `Fault`. An entry may name another ``subject`` or ``module``; without one the changed module
is the subject's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from harness import operators

CATALOGUE = Path(__file__).with_name("catalogue")
TIERS = ("cpu", "cuda")
OWN = "own"
CATALOGUED, GENERATED = "catalogue", "generated"
_REQUIRED = {"id", "source", "wrong", "find", "replace"}
_KNOWN = _REQUIRED | {"subject", "module", "tiers", "reason"}


@dataclass(frozen=True)
class Span:
    """A stretch of a text: lines count from 1, columns are characters from 0, the end is the first one behind it."""

    line: int
    column: int
    end_line: int
    end_column: int

    @classmethod
    def between(cls, text: str, start: int, end: int) -> Span:
        """The span from offset ``start`` to offset ``end``."""
        places = [
            (text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset) - 1) for offset in (start, end)
        ]
        return cls(*places[0], *places[1])

    def offsets(self, text: str) -> tuple[int, int]:
        """Where it begins and ends in ``text``; both at the text's end where that has no such line."""
        starts = [0, *(match.end() for match in re.finditer("\n", text))]
        start, end = (
            starts[line - 1] + column if line <= len(starts) else len(text)
            for line, column in ((self.line, self.column), (self.end_line, self.end_column))
        )
        return start, end


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    source: the public thread or commit of the fault that this one re-creates, or ``own``. wrong: what goes wrong, in a
    sentence. operator: whose properties must find it. subject: ``module:function`` that they run. module: whose source
    is changed, the subject's own or one that it imports. find, replace: the change; ``find`` must occur exactly once,
    or, where there is a ``span``, exactly there: so a generated fault says which of many like places it changes.
    tiers: where the fault can be seen; reason: why not on the others. equivalent: the proof that no caller can tell the
    change, if there is one; the fault is then no fault, and is not run.
    """

    id: str
    operator: str
    source: str
    wrong: str
    subject: str
    module: str
    find: str
    replace: str
    tiers: tuple[str, ...] = TIERS
    reason: str = ""
    span: Span | None = None
    equivalent: str = ""

    def __post_init__(self) -> None:
        operators.get(self.operator)
        module, _, function = self.subject.partition(":")
        if not function:
            raise ValueError(f"fault {self.id}: subject: got {self.subject!r}, expected module:function")
        if module.partition(".")[0] != self.module.partition(".")[0]:
            raise ValueError(
                f"fault {self.id}: module: got {self.module!r}, expected one of the package of {self.subject!r}"
            )
        if not self.find or self.find == self.replace:
            raise ValueError(f"fault {self.id}: find and replace: expected some text and another one")
        if self.source != OWN and not self.source.startswith("https://"):
            raise ValueError(f"fault {self.id}: source: got {self.source!r}, expected {OWN!r} or an https link")
        if not self.tiers or not set(self.tiers) <= set(TIERS):
            raise ValueError(f"fault {self.id}: tiers: got {list(self.tiers)}, expected some of {list(TIERS)}")
        if (self.tiers != TIERS) != bool(self.reason):
            raise ValueError(f"fault {self.id}: reason: expected one exactly where a tier cannot see the fault")

    @property
    def historical(self) -> bool:
        return self.source != OWN

    @property
    def kind(self) -> str:
        return CATALOGUED if self.span is None else GENERATED

    @property
    def file_name(self) -> str:
        """The id, without what a file's name had better not have."""
        return re.sub(r"[^\w.-]", "-", self.id)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kind": self.kind}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Fault:
        fields = {name: value for name, value in data.items() if name != "kind"}
        span = Span(**fields["span"]) if fields["span"] else None
        return cls(**{**fields, "tiers": tuple(fields["tiers"]), "span": span})


def load(folder: Path = CATALOGUE) -> list[Fault]:
    """Every fault of the catalogue, in the order of the operators, then of the files.

    Raises ValueError for a file or entry of another shape and for an id that occurs twice.
    """
    files = sorted(folder.glob("*.yaml"), key=lambda path: _rank(path.stem))
    faults = [fault for path in files for fault in read(path)]
    check_ids(faults)
    return faults


def check_ids(faults: Iterable[Fault]) -> None:
    """ValueError for an id that occurs twice."""
    seen: set[str] = set()
    for fault in faults:
        if fault.id in seen:
            raise ValueError(f"fault {fault.id}: the id occurs twice in the catalogue; ids name a fault in reports")
        seen.add(fault.id)


def check_fields(path: Path, entry: dict[str, Any], required: set[str], known: set[str]) -> None:
    """ValueError for an entry of ``path`` that lacks a required field or has an unknown one."""
    missing, unknown = required - set(entry), set(entry) - known
    if missing or unknown:
        raise ValueError(
            f"{path.name}: fault {entry.get('id', 'without an id')}: missing fields {sorted(missing)},"
            f" unknown fields {sorted(unknown)}"
        )


def read(path: Path) -> list[Fault]:
    """The faults of one file."""
    data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [_fault(path, data, entry) for entry in data["faults"]]


def _fault(path: Path, data: dict[str, Any], entry: dict[str, Any]) -> Fault:
    check_fields(path, entry, _REQUIRED, _KNOWN)
    subject = entry.get("subject", data["subject"])
    return Fault(
        id=entry["id"],
        operator=data["operator"],
        source=entry["source"],
        wrong=" ".join(entry["wrong"].split()),
        subject=subject,
        module=entry.get("module", subject.partition(":")[0]),
        # A block scalar ends with a line break that is no part of the anchor.
        find=entry["find"].rstrip("\n"),
        replace=entry["replace"].rstrip("\n"),
        tiers=tuple(entry.get("tiers", TIERS)),
        reason=" ".join(entry.get("reason", "").split()),
    )


def select(faults: Iterable[Fault], chosen_operators: Iterable[str] = (), ids: Iterable[str] = ()) -> list[Fault]:
    """The faults of these operators and with these ids; all where none is given.

    Raises ValueError for an unknown name, and for an id that the operators leave out: nobody asks for a fault not to be tried.
    """
    faults, wanted_operators, wanted = list(faults), set(chosen_operators), set(ids)
    for name in wanted_operators:
        operators.get(name)
    unknown = wanted - {fault.id for fault in faults}
    if unknown:
        raise ValueError(f"fault: got {', '.join(sorted(unknown))}, which are no faults here")
    of_operators = [fault for fault in faults if not wanted_operators or fault.operator in wanted_operators]
    left_out = sorted(wanted - {fault.id for fault in of_operators})
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        raise ValueError(
            f"fault: got {', '.join(left_out[:3])}{more}, expected faults of {', '.join(sorted(wanted_operators))};"
            " ids are enough without --operator"
        )
    return [fault for fault in of_operators if not wanted or fault.id in wanted]


def listed(path: Path) -> list[str]:
    """The ids in a list of faults: one a line, ``#`` begins a comment. ValueError where there is no id or one twice."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"--list: cannot read {path}: {error.strerror}") from error
    ids = [line.partition("#")[0].strip() for line in lines]
    ids = [one for one in ids if one]
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if twice or not ids:
        raise ValueError(f"--list {path}: " + (f"got {', '.join(twice)} twice" if twice else "got no id at all"))
    return ids


def _rank(operator: str) -> tuple[int, str]:
    known = list(operators.OPERATORS)
    return (known.index(operator) if operator in known else len(known), operator)
