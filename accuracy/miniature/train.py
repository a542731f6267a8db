"""``python -m accuracy.miniature.train FOLDER``: train the miniature and write it in the Hugging Face format.

A plain loop: AdamW, a warm-up and a cosine, bf16 autocast on a GPU. The end of the schedule is a number of steps or a time, whichever
comes first, so that the run fits into the machine's hours. Needs transformers; kernels come from torch alone, see `quick`. At the end
the model that was written answers the held-out problems greedily.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from torch.utils.data import DataLoader

from accuracy.grading import grade
from accuracy.miniature import quick
from accuracy.miniature import tokenizer as words
from accuracy.miniature.rows import IGNORED, Rows, spoken
from accuracy.problems.generator import held_out

#: Bytes that the checkpoint may take.
LARGEST = 32 * 2**20
GROUP = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]


def configuration(vocabulary: int, end: int, layers: int = 8, hidden: int = 256) -> Any:
    """A Qwen3.5-MoE in which everything that the published ones have occurs: some 10 million parameters."""
    from transformers import Qwen3_5MoeTextConfig

    return Qwen3_5MoeTextConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        layer_types=(GROUP * layers)[:layers],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        linear_conv_kernel_dim=4,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        shared_expert_intermediate_size=128,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        eos_token_id=end,
        bos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )


@dataclass(frozen=True)
class Point:
    """One line of the log. held_out_loss, exact: nan where they were not measured."""

    step: int
    seconds: float
    rate: float
    loss: float
    held_out_loss: float = math.nan
    exact: float = math.nan


def pace(step: int, steps: int, elapsed: float, limit: float) -> float:
    """How far the schedule is, from 0 to 1: by steps or by time, whichever is farther."""
    return min(1.0, max(step / steps, elapsed / limit))


def factor(done: float, warm_up: float = 0.03, floor: float = 0.02) -> float:
    """The learning rate's share of its peak when the schedule is so far."""
    if done < warm_up:
        return max(done, 1e-3) / warm_up
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def loss_of(model: Any, tokens: Tensor, labels: Tensor, balance: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the answers, and the same with the router's load balancing, which training minimises."""
    out = model(input_ids=tokens, use_cache=False, output_router_logits=balance > 0)
    logits = out.logits[:, :-1].float()
    plain = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    return plain, plain + balance * out.aux_loss if balance > 0 else plain


@torch.no_grad()
def measured(model: Any, batches: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Loss on held-out answers, and the share of them that the model reproduces token for token.

    A teacher-forced answer without a wrong token is the greedy answer, so the share is a lower bound of the accuracy.
    """
    model.eval()
    total = exact = 0.0
    count = rows = 0
    for tokens, labels in batches:
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        wanted, told = labels[:, 1:], labels[:, 1:] != IGNORED
        total += float(F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum"))
        exact += float(((logits.argmax(-1) == wanted) | ~told).all(dim=-1).sum())
        count, rows = count + int(told.sum()), rows + len(tokens)
    model.train()
    return total / count, exact / rows


def questions(tokenizer: Any, number: int, annotations: bool, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Held-out problems, padded at their right, where nothing before can see it."""
    pairs = [spoken(tokenizer, problem) for problem in held_out(number, annotations=annotations)]
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    batches = []
    for start in range(0, len(pairs), 128):
        part = pairs[start : start + 128]
        longest = max(len(question) + len(answer) for question, answer in part)
        tokens = torch.zeros(len(part), longest, dtype=torch.int64)
        labels = torch.full_like(tokens, IGNORED)
        for row, (question, answer) in enumerate(part):
            both = torch.tensor([*question, *answer])
            tokens[row, : len(both)] = both
            labels[row, len(question) : len(both)] = both[len(question) :]
        batches.append((tokens.to(device), labels.to(device)))
    return batches


def optimizer_of(model: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW; vectors (norms, decays, biases) are not decayed."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=next(model.parameters()).is_cuda)


def train(
    model: Any,
    rows: Iterator[list[Tensor]],
    asked: list[tuple[Tensor, Tensor]],
    *,
    steps: int,
    seconds: float,
    rate: float,
    balance: float = 0.01,
    every: float = 30.0,
) -> Iterator[Point]:
    """Train until the schedule is at its end; a point every 20 steps, with held-out measures every so many seconds and at the end."""
    device = next(model.parameters()).device
    optimizer, begun, step, done = optimizer_of(model, rate), time.perf_counter(), 0, 0.0
    last = begun
    model.train()
    while done < 1:
        done = pace(step + 1, steps, time.perf_counter() - begun, seconds)
        for group in optimizer.param_groups:
            group["lr"] = rate * factor(done)
        tokens, labels = (part.to(device, non_blocking=True) for part in next(rows))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            plain, whole = loss_of(model, tokens, labels, balance)
        optimizer.zero_grad(set_to_none=True)
        whole.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 20 and done < 1:
            continue
        now = float(plain.detach())
        if not math.isfinite(now):
            raise RuntimeError(f"training: the loss is {now} at step {step}; lower the rate")
        due = done >= 1 or time.perf_counter() - last >= every
        found = measured(model, asked) if due else (math.nan, math.nan)
        last = time.perf_counter() if due else last
        yield Point(step, time.perf_counter() - begun, rate * factor(done), now, *found)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the checkpoint in bf16. Raises ValueError where it is larger than it may be."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    words.save(tokenizer, folder)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if size > LARGEST:
        raise ValueError(f"checkpoint: {folder} has {size / 2**20:.1f} MiB, expected at most {LARGEST >> 20}")


def draw(points: list[Point], path: Path) -> None:
    """The losses over steps, on a logarithmic scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "sluicegate"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot([p.step for p in points], [p.loss for p in points], linewidth=0.8, label="training")
    told = [p for p in points if not math.isnan(p.held_out_loss)]
    axes.plot([p.step for p in told], [p.held_out_loss for p in told], marker=".", label="held out")
    axes.set(yscale="log", xlabel="step", ylabel="cross-entropy of an answer's token, nats")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def answered(model: Any, tokenizer: Any, number: int, annotations: bool) -> tuple[float, list[tuple[str, str]]]:
    """Share of held-out problems that greedy answers get right, and each answer beside the worked solution."""
    problems = held_out(number, annotations=annotations)
    asked = [spoken(tokenizer, problem)[0] for problem in problems]
    stops = {tokenizer.token_to_id(words.END), tokenizer.encode("Question:", add_special_tokens=False).ids[0]}
    texts = [tokenizer.decode(tokens).strip() for tokens in quick.greedy(model, asked, stops)]
    right = [grade(text, problem.solution).right for text, problem in zip(texts, problems, strict=True)]
    return sum(right) / len(right), [(text, problem.solution) for text, problem in zip(texts, problems, strict=True)]


def main(
    folder: Annotated[Path, typer.Argument(help="Where the checkpoint, train.csv and train.svg go.")],
    steps: Annotated[int, typer.Option(help="Of the schedule, at most.", min=1)] = 50_000,
    minutes: Annotated[float, typer.Option(help="Of the schedule, at most.", min=0.01)] = 7.0,
    batch: Annotated[int, typer.Option(help="Rows in a step.", min=1)] = 64,
    length: Annotated[int, typer.Option(help="Tokens of a row.", min=64)] = 512,
    rate: Annotated[float, typer.Option(help="The largest learning rate.")] = 1.5e-3,
    layers: Annotated[int, typer.Option(help="Three in four of them gated delta nets.", min=4)] = 8,
    annotations: Annotated[bool, typer.Option(help="Learn solutions with <<a*b=c>>.")] = False,
    asked: Annotated[int, typer.Option(help="Held-out problems for the measures on the way.", min=1)] = 1319,
    workers: Annotated[int, typer.Option(help="Processes that make problems; 0: this one.", min=0)] = 8,
    seed: Annotated[int, typer.Option(help="Of weights and problems.")] = 0,
) -> None:
    """Train the miniature."""
    from transformers import Qwen3_5MoeForCausalLM

    quick.installed()
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    if device.type == "cpu":
        typer.echo("no GPU: this will take hours; name a small --layers, --batch and --minutes to try it")
    tokenizer = words.trained()
    config = configuration(tokenizer.get_vocab_size(), tokenizer.token_to_id(words.END), layers)
    model = Qwen3_5MoeForCausalLM._from_config(config, experts_implementation="eager").to(device)
    quick.remembering(model, seed)
    count = sum(p.numel() for p in model.parameters())
    typer.echo(f"{count / 1e6:.2f} million parameters, {tokenizer.get_vocab_size()} tokens, on {device}")
    loader = DataLoader(
        Rows(tokenizer, length, seed, annotations), batch, num_workers=workers, pin_memory=device.type == "cuda"
    )
    held = questions(tokenizer, asked, annotations, device)
    points = []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "train.csv").open("w", newline="") as file:
        log = csv.writer(file, lineterminator="\n")
        log.writerow(["step", "seconds", "rate", "loss", "held_out_loss", "exact"])
        for point in train(model, iter(loader), held, steps=steps, seconds=60 * minutes, rate=rate):
            points.append(point)
            figures = (point.rate, point.loss, point.held_out_loss, point.exact)
            log.writerow([point.step, f"{point.seconds:.1f}", *(f"{figure:.5g}" for figure in figures)])
            file.flush()
            if not math.isnan(point.exact):
                speed = point.step * batch * length / point.seconds
                typer.echo(
                    f"step {point.step}, {point.seconds:.0f} s, {speed:,.0f} tokens/s: loss {point.loss:.4f},"
                    f" held out {point.held_out_loss:.4f}, exact {point.exact:.4f}"
                )
    save(model, tokenizer, folder)
    draw(points, folder / "train.svg")
    right, texts = answered(model.float(), tokenizer, asked, annotations)
    typer.echo(f"greedy answers right: {100 * right:.2f} % of {len(texts)}, with the weights as they were written")
    for text, solution in [pair for pair in texts if not grade(*pair).right][:3]:
        typer.echo(f"wrong: {text!r}, expected {solution!r}")


if __name__ == "__main__":
    typer.run(main)
