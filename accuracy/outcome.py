"""What one run over a set of questions stores: a line that says what ran, then a line a question, written as each is answered.

So a run that is killed has lost nothing that was done, and goes on where it ended.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from accuracy.grading import grade

FORMAT = 1
T = TypeVar("T")


def hashed(text: str) -> str:
    """What stands for a prompt or a target: enough to see that it is another, without publishing it."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


@dataclass(frozen=True)
class RunInfo:
    """What ran.

    Attributes:
        task, task_version: whose prompts and grading. questions: how many the run is to answer.
        model, tokenizer: names, or hashes of their files. kernels: the kernel set, or the server's description.
        concurrency: most requests at once. cache: "cold" or "warm", a second pass over a used prefix cache.
        seed: of whatever is drawn. versions: of the packages that matter. environment: machine and device.
        date: when the run began, UTC.
    """

    task: str
    task_version: str
    questions: int
    model: str
    tokenizer: str
    kernels: str
    concurrency: int
    cache: str = "cold"
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    date: str = ""

    def __post_init__(self) -> None:
        if self.questions < 1 or self.concurrency < 1:
            raise ValueError(
                f"run: got {self.questions} questions and concurrency {self.concurrency}, expected at least 1"
            )
        if self.cache not in ("cold", "warm"):
            raise ValueError(f'cache: got {self.cache!r}, expected "cold" or "warm"')


@dataclass(frozen=True)
class Outcome:
    """What became of one question.

    Attributes:
        index: its place in the task. prompt_hash, target_hash: of what was asked and of the worked solution.
        answer: the text that came. strict, flexible: the numbers found in it. right, right_flexible: whether they are the target.
        truncated: the answer ended because it was too long. tokens: of the answer, -1 where nobody counted.
    """

    index: int
    prompt_hash: str
    target_hash: str
    answer: str
    strict: str
    flexible: str
    right: bool
    right_flexible: bool
    truncated: bool
    tokens: int = -1

    @property
    def empty(self) -> bool:
        return not self.answer.strip()


def outcome(index: int, prompt: str, target: str, answer: str, *, truncated: bool, tokens: int = -1) -> Outcome:
    """Grade an answer."""
    graded = grade(answer, target)
    return Outcome(index, hashed(prompt), hashed(target), answer, **asdict(graded), truncated=truncated, tokens=tokens)


@dataclass(frozen=True)
class Run:
    """A run, whole or not; outcomes by index."""

    info: RunInfo
    outcomes: Mapping[int, Outcome]

    @property
    def complete(self) -> bool:
        return len(self.outcomes) == self.info.questions

    def accuracy(self, *, flexible: bool = False) -> float:
        """Share that is right; nan of nothing."""
        marks = [o.right_flexible if flexible else o.right for o in self.outcomes.values()]
        return sum(marks) / len(marks) if marks else float("nan")


def load(path: str | Path) -> Run:
    """Read a run; a last line that was cut short by a crash is left out.

    Raises ValueError that names file and line where it is not what `Writer` wrote.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[Run, int]:
    """The run, and how many bytes of the file are whole lines."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"run: cannot read {path} ({error.strerror}); expected the file of a run") from error
    whole = content.rfind(b"\n") + 1
    # Not splitlines: an answer may hold other characters that end a line, which JSON leaves as they are.
    lines = content[:whole].decode("utf-8", errors="replace").split("\n")[:-1]
    if not lines:
        raise ValueError(f"run: {path} is empty, expected a line that says what ran")
    head = _line(path, 1, lines[0])
    if head.pop("format", None) != FORMAT:
        raise ValueError(f"run: {path} is not of format {FORMAT}, which this version reads; make the run again")
    info = _made(RunInfo, head, path, 1)
    outcomes: dict[int, Outcome] = {}
    for number, line in enumerate(lines[1:], 2):
        one = _made(Outcome, _line(path, number, line), path, number)
        if one.index in outcomes:
            raise ValueError(f"run: {path}, line {number}: question {one.index} a second time, expected each once")
        if not 0 <= one.index < info.questions:
            raise ValueError(f"run: {path}, line {number}: question {one.index}, expected 0 to {info.questions - 1}")
        outcomes[one.index] = one
    return Run(info, dict(sorted(outcomes.items()))), whole


def _line(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"run: {path}, line {number} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"run: {path}, line {number}: got {type(found).__name__}, expected an object")
    return found


_KINDS: dict[str, type] = {"str": str, "int": int, "bool": bool, "Mapping[str, str]": dict}


def _made(kind: type[T], found: dict[str, Any], path: Path, number: int) -> T:
    where = f"run: {path}, line {number}"
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    if strange := sorted(set(found) - set(known)):
        raise ValueError(f"{where}: got {', '.join(strange)}, which no {kind.__name__} has")
    for name, value in found.items():
        wanted = _KINDS[str(known[name].type)]
        if type(value) is not wanted:
            raise ValueError(f"{where}: {name} is {value!r}, expected {wanted.__name__}")
    try:
        return kind(**found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


class Writer:
    """Appends outcomes to the file of a run; each is with the operating system before `add` returns.

    Where the file is there already, the run goes on: `done` has what was answered.

    Raises:
        ValueError: the file is of another run: what differs is named.
    """

    def __init__(self, path: str | Path, info: RunInfo) -> None:
        self.path, self.info = Path(path), info
        self.done: dict[int, Outcome] = {}
        self._file: IO[bytes] | None = None
        begun = self.path.exists() and b"\n" in self.path.read_bytes()
        if begun:
            run, whole = _read(self.path)
            _same_run(self.path, run.info, info)
            self.info, self.done = run.info, dict(run.outcomes)
            self._file = self.path.open("r+b")
            self._file.truncate(whole)
            self._file.seek(whole)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not info.date:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            self.info = RunInfo(**{**_shallow(info), "date": now})
        self._file = self.path.open("wb")
        self._write({"format": FORMAT, **_shallow(self.info)})

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, one: Outcome) -> None:
        """Raises ValueError for a question that is answered already, or that the run does not have."""
        if one.index in self.done or not 0 <= one.index < self.info.questions:
            raise ValueError(f"index: got {one.index}, expected one of 0 to {self.info.questions - 1} not yet answered")
        self._write(_shallow(one))
        self.done[one.index] = one

    @property
    def missing(self) -> list[int]:
        return [index for index in range(self.info.questions) if index not in self.done]

    @property
    def run(self) -> Run:
        return Run(self.info, dict(sorted(self.done.items())))

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._file is None:
            raise ValueError(f"run: {self.path} is closed")
        self._file.write((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8"))
        self._file.flush()


def _shallow(record: RunInfo | Outcome) -> dict[str, Any]:
    return {one.name: getattr(record, one.name) for one in fields(record)}


def _same_run(path: Path, stored: RunInfo, asked: RunInfo) -> None:
    """A run may go on another day, nothing else may differ."""
    ours, theirs = _shallow(asked), _shallow(stored)
    for name in ours:
        if name != "date" and ours[name] != theirs[name]:
            raise ValueError(
                f"run: {path} was begun with {name} {theirs[name]!r}, and is now to go on with {ours[name]!r}; name"
                " another file, or remove this one"
            )


def environment() -> dict[str, str]:
    """Machine and device of this process."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "device": device,
    }


def versions(*packages: str) -> dict[str, str]:
    """Of the packages that are installed."""
    from importlib import metadata

    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
