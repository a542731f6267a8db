"""Sluicegate's engine as a model of the language model evaluation harness (lm-eval), registered as ``sluicegate``.

Importing this file imports lm-eval. Text is made by the engine under continuous batching; likelihoods are computed by the same model
and the same kernels in one prefill, because the engine keeps no logits of prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from accuracy.answerers import capturable
from accuracy.answering import Answering, Prompt, Tokenizer, settings_for
from accuracy.outcome import Writer, hashed, outcome
from accuracy.tokens import Told, forced
from serving import presets
from serving.model import HybridModel
from serving.request import Sampling


@register_model("sluicegate")
class SluicegateLM(TemplateLM):  # type: ignore[misc]  # lm-eval is not typed
    """A checkpoint on a kernel set.

    Attributes:
        writer: where each answer is recorded as it comes, for GSM8K's tasks: what it holds already is not asked again.
    """

    def __init__(
        self,
        pretrained: str,
        kernels: str = "optimized",
        dtype: str = "auto",
        device: str = "cpu",
        max_length: int = 4096,
        max_gen_toks: int = 256,
        concurrency: int = 64,
        prefixes: bool = True,
        seed: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """Read the checkpoint in the folder `pretrained`; the arguments are those of ``--model_args``.

        Args:
            kernels: as in `KernelSet.named`. dtype: "auto" is bfloat16 on a GPU and float32 on a CPU.
            max_length: most tokens of a prompt and its answer. max_gen_toks: of an answer, where the task does not say.
            concurrency: most requests at once. batch_size: the same, where lm-eval says a number.

        Raises:
            ValueError: no checkpoint, tokenizer, kernel set or dtype of that name.
        """
        super().__init__()
        names = {"auto": torch.bfloat16 if device.startswith("cuda") else torch.float32}
        names |= {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if dtype not in names:
            raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(names)}")
        if isinstance(batch_size, int) or (isinstance(batch_size, str) and batch_size.isdigit()):
            concurrency = int(batch_size)
        model = presets.model(pretrained, kernels, dtype=names[dtype], device=torch.device(device), seed=seed)
        graphs = capturable(kernels)
        self.attach(model, Tokenizer(Path(pretrained) / "tokenizer.json"), max_length, concurrency, prefixes, graphs)
        self.max_gen_toks, self.seed = max_gen_toks, seed
        self.writer: Writer | None = None

    def attach(
        self,
        model: HybridModel,
        text: Tokenizer,
        max_length: int,
        concurrency: int,
        prefixes: bool,
        graphs: bool = True,
    ) -> None:
        """Answer with this model from now on."""
        if not model.config.eos_token_ids:
            raise ValueError("model: its configuration has no eos_token_id, expected what ends an answer")
        self.model, self.text, self.max_length = model, text, max_length
        self.answering = Answering(
            model, text, settings_for(model, max_length, concurrency, prefixes=prefixes, graphs=graphs)
        )
        self._device = model.device

    # -- tokens -----------------------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self.model.config.eos_token_ids[0]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.text.encode(string)

    def tok_decode(self, tokens: Sequence[int], **_: Any) -> str:
        return self.text.decode(tokens)

    @property
    def tokenizer_name(self) -> str:
        return "sluicegate"

    # -- text -------------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers in the order of the requests.

        Raises ValueError for a prompt that is too long, and for an option that the engine does not have.
        """
        texts: list[str | None] = [None] * len(requests)
        waiting = []
        for place, request in enumerate(requests):
            known = self.writer.done.get(request.doc_id) if self.writer else None
            if known is None:
                waiting.append(place)
            elif known.prompt_hash != hashed(request.args[0]):
                raise ValueError(f"run: question {request.doc_id} was asked with another prompt; name another file")
            else:
                texts[place] = known.answer
        prompts = (self._prompt(*requests[place].args) for place in waiting)
        for done, answer in self.answering(prompts):
            request = requests[waiting[done]]
            context, options = request.args
            if self.writer is not None:
                self.writer.add(
                    outcome(
                        request.doc_id,
                        context,
                        request.doc["answer"],
                        answer.text,
                        truncated=answer.truncated,
                        tokens=answer.tokens,
                    )
                )
            self.cache_hook.add_partial("generate_until", (context, options), answer.text)
            texts[waiting[done]] = answer.text
        return [text if text is not None else "" for text in texts]

    def _prompt(self, context: str, options: dict[str, Any]) -> Prompt:
        left = dict(options)
        until = left.pop("until", None) or ()
        most = [left.pop(name, None) for name in ("max_gen_toks", "max_new_tokens", "max_tokens")]
        new = next((int(number) for number in most if number is not None), self.max_gen_toks)
        temperature = float(left.pop("temperature", None) or 0.0)
        sampled = left.pop("do_sample", temperature > 0)
        sampling = Sampling(
            temperature=(temperature or 1.0) if sampled else 0.0,
            top_k=int(left.pop("top_k", None) or 0),
            top_p=float(left.pop("top_p", None) or 1.0),
            seed=self.seed,
        )
        if left:
            raise ValueError(f"gen_kwargs: got {', '.join(sorted(left))}, which the engine does not have; leave it out")
        return Prompt(context, (until,) if isinstance(until, str) else tuple(until), new, sampling)

    # -- likelihoods ------------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self,
        requests: Iterable[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is the greedy one. Contexts are cut at their left to fit."""
        asked = list(requests)
        # An empty continuation is certain; it has no token to be asked for.
        told = [self._fitting(context, answer) for _, context, answer in asked if answer]
        scores = (self._score(one, logits) for one, logits in zip(told, forced(self.model, told), strict=True))
        found = []
        for pair, _context, answer in asked:
            found.append(next(scores) if answer else (0.0, True))
            if pair is not None:
                self.cache_hook.add_partial("loglikelihood", pair, found[-1])
        return found

    def _fitting(self, context: list[int], answer: list[int]) -> Told:
        tokens = [*context, *answer][-(self.max_length + 1) :]
        if len(answer) >= len(tokens):
            raise ValueError(
                f"continuation: got {len(answer)} tokens, expected fewer than {self.max_length}, max_length"
            )
        return Told(tuple(tokens[: -len(answer)]), tuple(answer))

    @staticmethod
    def _score(told: Told, logits: torch.Tensor) -> tuple[float, bool]:
        answer = torch.tensor(told.answer, device=logits.device)
        chances = torch.log_softmax(logits.double(), dim=-1).gather(1, answer[:, None])
        return float(chances.sum()), bool((logits.argmax(dim=-1) == answer).all())

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        found = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            rolling = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            parts = [(None, *make_disjoint_window(window)) for window in rolling]
            found.append(sum(score for score, _ in self._loglikelihood_tokens(parts)))
        return found
