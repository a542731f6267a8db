"""Rows of tokens to learn from: problems one after the other, as a prompt with examples has them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from accuracy.miniature.tokenizer import END, text
from accuracy.problems.generator import Problem, generate

#: A label that is not learnt: what stands in a question cannot be foretold.
IGNORED = -100


def spoken(tokenizer: Any, problem: Problem) -> tuple[list[int], list[int]]:
    """Tokens of the question, and of the answer with what separates it from the next question."""
    question = tokenizer.encode(text(problem.question), add_special_tokens=False).ids
    return question, tokenizer.encode(f" {problem.solution}\n\n", add_special_tokens=False).ids


class Rows(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless pairs of tokens and labels, each [length] int64. Workers draw from seeds of their own.

    A problem follows another after an empty line, so that examples before a question are nothing new; one in six begins a new
    document. The first "Question:" behind an answer is learnt too: it is where lm-eval's task stops.
    """

    def __init__(self, tokenizer: Any, length: int, seed: int, annotations: bool) -> None:
        self.tokenizer, self.length, self.seed, self.annotations = tokenizer, length, seed, annotations

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        info = get_worker_info()
        seed = 1000 * self.seed + (info.id if info is not None else 0)
        problems = generate(seed, "train", annotations=self.annotations)
        source = random.Random(f"rows {seed}")
        end = self.tokenizer.token_to_id(END)
        opening = len(self.tokenizer.encode("Question:", add_special_tokens=False).ids)
        for _ in count():
            tokens: list[int] = []
            labels: list[int] = []
            while len(tokens) < self.length:
                question, answer = spoken(self.tokenizer, next(problems))
                fresh = not tokens or tokens[-1] == end
                learnt = 0 if fresh else opening
                tokens += question + answer
                labels += question[:learnt] + [IGNORED] * (len(question) - learnt) + answer
                if source.random() < 1 / 6:
                    tokens.append(end)
                    labels.append(end)
            yield torch.tensor(tokens[: self.length]), torch.tensor(labels[: self.length])
