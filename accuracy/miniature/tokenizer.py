"""The miniature's tokenizer: byte-level pairs learnt from its own problems, each digit by itself."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from accuracy.problems.generator import generate
from harness.files import write_whole

#: Ends a document.
END = "<|endoftext|>"
VOCABULARY = 1024
#: Problems to learn pairs from.
SAMPLE = 8000


def text(question: str) -> str:
    """How lm-eval's task `gsm8k` asks a question; the answer follows after a space."""
    return f"Question: {question}\nAnswer:"


def trained(sample: int = SAMPLE, vocabulary: int = VOCABULARY) -> Any:
    """A tokenizer, the same every time.

    Digits are never joined: arithmetic is learnt digit by digit, and a number has one spelling.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9]| ?[A-Za-z']+| ?[^\sA-Za-z0-9]|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    problems = islice(generate(0, "train"), sample)
    made.train_from_iterator((f"{text(one.question)} {one.solution}\n\n" for one in problems), trainer)
    return made


def save(made: Any, folder: Path) -> None:
    """Write tokenizer.json, and what transformers wants to know about it."""
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "clean_up_tokenization_spaces": False}
    write_whole(folder / "tokenizer_config.json", json.dumps(about, indent=2) + "\n")
