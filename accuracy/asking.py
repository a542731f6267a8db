"""Who is asked, from the words of the command line: our engine, a server or a library, each with what is stored about it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from accuracy import answerers
from accuracy.answering import Tokenizer
from accuracy.client import Server
from accuracy.outcome import RunInfo, environment, versions
from accuracy.running import Answerer
from accuracy.sensitivity.trial import told
from accuracy.session import Party
from accuracy.tasks import Task
from accuracy.tokens import TokenCheck, compared, through_engine

PACKAGES = ("sluicegate", "torch", "triton", "tokenizers", "lm-eval")


@dataclass(frozen=True)
class Asking:
    """The command line's words, see `sluicegate accuracy --help`. Exactly one of the first three says who answers."""

    model: str | None = None
    base_url: str | None = None
    lm_eval_model: str | None = None
    served: str = ""
    model_args: str = ""
    kernels: str = "optimized"
    device: str = "auto"
    dtype: str = "auto"
    concurrency: int = 32
    chunk_budget: int | None = None
    seed: int = 0
    timeout: float = 600.0

    @property
    def noise(self) -> float:
        """Share of answers expected to flip between right runs: few where both compute in float32, which we then know."""
        if self.model is None:
            return 0.02
        from harness.cli.device import choose

        exact = self.dtype == "float32" or (self.dtype == "auto" and choose(self.device) == "cpu")
        return 0.0025 if exact else 0.02

    def parties(self, task: Task, against: str | None) -> list[Party]:
        """Who answers, the one to compare with first.

        Raises ValueError where nobody is named, or more than one; and what there is to say against the one named.
        """
        named = [name for name in ("model", "base_url", "lm_eval_model") if getattr(self, name)]
        if len(named) != 1:
            raise ValueError("expected one of --model FOLDER, --base-url URL, --lm-eval-model NAME; see --help")
        if self.model is None and against is not None:
            raise ValueError("--against: names kernels of our own engine; with a server or a library use --baseline")
        if self.base_url is not None:
            return [self._server(task, self.base_url)]
        if self.lm_eval_model is not None:
            return [self._library(task, self.lm_eval_model)]
        sets = [self.kernels] if against is None else [against, self.kernels]
        if len(set(sets)) < len(sets):
            raise ValueError(f"--against: got {against!r} and --kernels the same, expected two sets")
        return [self._engine(task, kernels) for kernels in sets]

    def tokens(self, task: Task, against: str, number: int) -> TokenCheck:
        """Both kernel sets made to say the first so many worked solutions, every next token compared.

        Raises ValueError where nobody's engine of ours answers.
        """
        if self.model is None:
            raise ValueError("--told: wants our own engine, whose logits can be seen; name --model and --against")
        text = Tokenizer(Path(self.model) / "tokenizer.json")
        questions = told(task, text, number)
        longest = max(len(one.prompt) + len(one.answer) for one in questions)
        old, new = (
            through_engine(answerers.engine(self._asked(kernels, longest)), questions)
            for kernels in (against, self.kernels)
        )
        return TokenCheck(tuple(compared(before, after) for before, after in zip(old, new, strict=True)))

    def _asked(self, kernels: str, longest: int) -> answerers.Engine:
        return answerers.Engine(
            str(self.model),
            kernels,
            self.device,
            self.dtype,
            self.concurrency,
            max_length=longest,
            chunk_budget=self.chunk_budget,
            seed=self.seed,
        )

    def _info(self, task: Task, model: str, tokenizer: str, kernels: str, **settings: str) -> RunInfo:
        return RunInfo(
            task=task.name,
            task_version=task.version,
            questions=len(task.asked),
            model=model,
            tokenizer=tokenizer,
            kernels=kernels,
            concurrency=self.concurrency,
            seed=self.seed,
            versions=versions(*PACKAGES),
            environment={**environment(), **settings},
        )

    def _engine(self, task: Task, kernels: str) -> Party:
        folder = Path(str(self.model))
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"--model: {folder} has no config.json, expected the folder of a checkpoint; that of the miniature is"
                " accuracy/miniature/checkpoint"
            )
        longest = self._longest(task, folder)
        asked = self._asked(kernels, longest)
        info = self._info(
            task,
            answerers.fingerprint(folder),
            answerers.tokenizer_hash(folder),
            kernels,
            dtype=self.dtype,
            chunk_budget=str(self.chunk_budget or "default"),
        )
        return Party(kernels, info, lambda: answerers.engine(asked))

    def _longest(self, task: Task, folder: Path) -> int:
        """Tokens of the longest question with room for its answer."""
        text = Tokenizer(folder / "tokenizer.json")
        return max(len(text.encode(one.prompt)) + one.most_tokens for one in task.asked)

    def _server(self, task: Task, url: str) -> Party:
        server = Server(url, self.served, self.concurrency, self.timeout)
        info = self._info(task, server.model, "the server's", f"server {url}")
        # What this machine has says nothing about the server.
        return Party(f"server {server.model}", replace(info, versions={}, environment={}), lambda: server)

    def _library(self, task: Task, name: str) -> Party:
        info = self._info(task, self.model_args, "the library's", f"lm-eval {name}", dtype=self.dtype)

        def make() -> Answerer:
            return answerers.Library(name, self.model_args, self.concurrency)

        return Party(f"lm-eval {name}", info, make)
