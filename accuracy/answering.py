"""Prompts of text through the engine: answers of text, cut at the words that end them, in the order in which they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.engine import Engine
from serving.model import HybridModel
from serving.request import Request, Sampling
from serving.settings import EngineSettings


class Tokenizer:
    """The text of a checkpoint: its tokenizer.json."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError where there is none, or no tokenizer library."""
        if not path.is_file():
            raise ValueError(f"tokenizer: {path} is missing, expected the file tokenizer.json of the checkpoint")
        try:
            from tokenizers import Tokenizer as Read
        except ImportError as error:
            raise ValueError("tokenizer: the package tokenizers is missing; install it, or run make setup") from error
        self._read: Any = Read.from_file(str(path))

    def encode(self, text: str) -> list[int]:
        """Without a token at its beginning: the models that we serve have none."""
        return self._read.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Iterable[int]) -> str:
        """Without special tokens."""
        return self._read.decode(list(tokens), skip_special_tokens=True)


@dataclass(frozen=True)
class Prompt:
    """text: what is asked, or its tokens. until: texts that end the answer, and are no part of it. max_new_tokens: from 1."""

    text: str | tuple[int, ...]
    until: tuple[str, ...] = ()
    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Answer:
    """text: of the answer. tokens: how many were made for it. truncated: it ended because it was too long."""

    text: str
    tokens: int
    truncated: bool


def settings_for(
    model: HybridModel,
    longest: int,
    concurrency: int,
    *,
    prefixes: bool = True,
    graphs: bool = True,
    chunk_budget: int | None = None,
    slot_seed: int | None = None,
) -> EngineSettings:
    """An engine with memory for so many requests of `longest` tokens at once.

    Args:
        graphs: replay decodes where there is a GPU; references, which read indices on the host, cannot be captured.
        chunk_budget: most tokens in a step; longer prompts are cut. slot_seed: draws slots in place of the last freed.
    """
    page, interval = 16, max(16, model.kernels.chunk_size)
    gpu = model.device.type == "cuda"
    sizes = tuple(size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if size < concurrency)
    kept = concurrency if prefixes else 0
    return EngineSettings(
        slots=concurrency + kept,
        pages=-(-longest // page) * (concurrency + kept),
        page_size=page,
        max_batch_size=concurrency,
        max_tokens=max(chunk_budget or (8192 if gpu else 512), concurrency),
        max_length=longest,
        graph_sizes=(*sizes, concurrency) if gpu and graphs else (),
        graphs="cuda" if gpu and graphs else "off",
        snapshot_interval=interval if prefixes else 0,
        slot_seed=slot_seed,
    )


class Answering:
    """An engine that is asked in text. One life: a second pass meets the prefixes that the first one left."""

    def __init__(
        self,
        model: HybridModel,
        tokenizer: Tokenizer,
        settings: EngineSettings,
        make: Callable[[HybridModel, EngineSettings], Any] = Engine,
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.engine: Engine = make(model, settings)
        self._asked = 0
        self._open: dict[str, Prompt] = {}

    def __call__(self, prompts: Iterable[Prompt]) -> Iterator[tuple[int, Answer]]:
        """Answers, each with its prompt's place, as they are done. Few prompts are in the engine at once.

        Raises ValueError for a prompt that is empty or leaves no room for its answer.
        """
        asked = enumerate(prompts)
        places: dict[str, int] = {}
        try:
            while True:
                while len(places) < 2 * self.settings.max_batch_size and (one := next(asked, None)) is not None:
                    places[self.submit(one[1])] = one[0]
                if not places:
                    return
                for name, answer in self.step():
                    yield places.pop(name), answer
        finally:
            # Somebody stopped listening, or a prompt was refused: what is still there is in nobody's way.
            for name in places:
                self.drop(name)

    def submit(self, prompt: Prompt) -> str:
        """Have it answered by the steps to come; returns its name. Raises ValueError as above."""
        name = str(self._asked)
        self._asked += 1
        tokens = prompt.text if isinstance(prompt.text, tuple) else tuple(self.tokenizer.encode(prompt.text))
        stops = frozenset(self.model.config.eos_token_ids)
        self.engine.submit(Request(name, tokens, prompt.max_new_tokens, stops, prompt.sampling))
        self._open[name] = prompt
        return name

    def drop(self, name: str) -> None:
        """Nobody waits for this one any more. Does nothing for one that is done."""
        if self._open.pop(name, None) is not None:
            self.engine.abort(name)
            self.engine.forget(name)

    def step(self) -> list[tuple[str, Answer]]:
        """One step of the engine, and the names and answers of those that it completed."""
        report = self.engine.step()
        if not report.rows and self._open:
            raise RuntimeError(f"no progress: {len(self._open)} requests wait, and no step can be planned")
        reasons = dict(report.finished)
        done = []
        for name, _ in report.tokens:
            prompt = self._open[name]
            outputs = self.engine.requests[name].outputs
            if name in reasons or self._ended(outputs, prompt.until):
                text, cut = cut_at(self.tokenizer.decode(outputs), prompt.until)
                done.append((name, Answer(text, len(outputs), reasons.get(name) == "length" and not cut)))
        for name, _answer in done:
            self.drop(name)
        return done

    def _ended(self, outputs: list[int], until: tuple[str, ...]) -> bool:
        """Whether the last token completed one of these texts. A token may be a single byte, so few tokens need a look."""
        if not until:
            return False
        most = max(len(text.encode("utf-8")) for text in until) + 3
        return any(text in self.tokenizer.decode(outputs[-most:]) for text in until)


def cut_at(text: str, until: Iterable[str]) -> tuple[str, bool]:
    """The text up to the first of these, and whether there was one."""
    places = [place for end in until if end and (place := text.find(end)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
