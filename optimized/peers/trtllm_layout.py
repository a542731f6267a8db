"""The order in which `trtllm_bf16_moe` wants an expert's weights, as permutations of rows and of blocks.

Facts read in FlashInfer 0.7.2 (`flashinfer/fused_moe/core.py`: gated order, block layout; `flashinfer/utils.py`: rows of a
tile; `flashinfer/fused_moe/prepare.py`: their composition) and checked against tables that its own functions made. Of a
matrix [M, K] that is multiplied with tokens of K elements:

1. gated order, of the first product alone: the rows are up_0, gate_0, up_1, gate_1, ...;
2. shuffle: within blocks of 32 rows, row j moves to 8 (j mod 4) + j div 4, so that a thread of the epilogue finds the rows
   it needs next to each other; within blocks of 16 rows, to 8 (j mod 2) + j div 2, if the epilogue's tile is no multiple of
   128 rows;
3. blocks: [M, K] becomes [K / 64, M, 64], 128 bytes of a row in one piece.

Every table says for each new row which old row it is. They are made once for each set of parameters; weights, once for each
tensor (`Preparations`).
"""

from __future__ import annotations

import functools

import torch

from .prepared import Preparations

#: The rows of the epilogue's tile in the bfloat16 kernels.
EPILOGUE_ROWS = 128
#: Elements of a row in one block: 128 bytes of bfloat16.
BLOCK = 64
#: What the kernels ask of the intermediate size, and what their tiles ask of the hidden one.
ALIGNMENT = 128

PREPARED = Preparations()


def gated_rows(rows: int) -> torch.Tensor:
    """[rows] int64: one row of the first half and one of the second half in turn.

    Raises:
        ValueError: an odd number of rows.
    """
    if rows % 2:
        raise ValueError(f"rows: got {rows}, expected an even number; up and gate have as many each")
    return torch.arange(rows).view(2, rows // 2).T.reshape(rows)


def shuffled_rows(rows: int, epilogue_rows: int = EPILOGUE_ROWS) -> torch.Tensor:
    """[rows] int64: the shuffle of step 2 for an epilogue of tiles of `epilogue_rows`.

    Raises:
        ValueError: rows that are no whole number of blocks.
    """
    block, ways = (32, 4) if epilogue_rows % 128 == 0 else (16, 2)
    if rows % block:
        raise ValueError(f"rows: got {rows}, expected a multiple of {block}; pad the matrix with zero rows")
    # New row 8 way + j of a block is old row ways * j + way.
    inside = torch.arange(block).view(block // ways, ways).T.reshape(block)
    return (torch.arange(0, rows, block).unsqueeze(1) + inside).flatten()


@functools.cache
def rows_of(rows: int, *, gated: bool, epilogue_rows: int = EPILOGUE_ROWS) -> torch.Tensor:
    """[rows] int64: steps 1 and 2, or 2 alone, of a matrix whose halves are up and gate. Not to be written to."""
    shuffled = shuffled_rows(rows, epilogue_rows)
    return gated_rows(rows)[shuffled] if gated else shuffled


def inverse(order: torch.Tensor) -> torch.Tensor:
    """The order that undoes this one."""
    restored = torch.empty_like(order)
    restored[order] = torch.arange(len(order))
    return restored


def blocked(matrices: torch.Tensor, block: int = BLOCK) -> torch.Tensor:
    """[El, M, K] -> [El, K / block, M, block], dense.

    Raises:
        ValueError: K is no multiple of `block`.
    """
    experts, rows, columns = matrices.shape
    if columns % block:
        raise ValueError(f"columns: got {columns}, expected a multiple of {block}; pad the matrix with zero columns")
    return matrices.view(experts, rows, columns // block, block).transpose(1, 2).contiguous()


def unblocked(blocks: torch.Tensor) -> torch.Tensor:
    """[El, K / block, M, block] -> [El, M, K], dense."""
    experts, count, rows, block = blocks.shape
    return blocks.transpose(1, 2).reshape(experts, rows, count * block)


def aligned(hidden: int, intermediate: int) -> bool:
    """Whether the kernels take experts of these sizes as they are."""
    return hidden % ALIGNMENT == 0 and intermediate % ALIGNMENT == 0


def prepared(w_gate_up: torch.Tensor, w_down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[El, 2I, Hd] gate rows first, [El, Hd, I] -> [El, Hd / 64, 2I, 64] and [El, I / 64, Hd, 64]; remembered.

    Sizes that are not aligned are filled with zeros up to the next that is, which changes no result: see `padded`.
    """

    def make() -> tuple[torch.Tensor, torch.Tensor]:
        gate_up, down = padded(w_gate_up, w_down, ALIGNMENT, ALIGNMENT)
        # The library's first half is up.
        gate, up = gate_up.chunk(2, dim=1)
        first = rows_of(gate_up.shape[1], gated=True).to(gate_up.device)
        second = rows_of(down.shape[1], gated=False).to(down.device)
        return blocked(torch.cat([up, gate], dim=1)[:, first]), blocked(down[:, second])

    return PREPARED.get(make, (w_gate_up, w_down), ("trtllm", EPILOGUE_ROWS, BLOCK, ALIGNMENT))


def padded(
    w_gate_up: torch.Tensor, w_down: torch.Tensor, hidden_step: int, intermediate_step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same experts with Hd and I filled up to multiples of these, dense; the tensors themselves where nothing is missing.

    A filled-up intermediate element is silu(0) * 0 and meets a zero column; a filled-up hidden element of a token is zero, and
    what comes out of it is to be cut off.
    """
    experts, hidden, intermediate = w_down.shape
    more_hidden, more_intermediate = -hidden % hidden_step, -intermediate % intermediate_step
    if not more_hidden and not more_intermediate:
        return w_gate_up.contiguous(), w_down.contiguous()
    halves = w_gate_up.reshape(experts, 2, intermediate, hidden)
    halves = torch.nn.functional.pad(halves, (0, more_hidden, 0, more_intermediate))
    gate_up = halves.reshape(experts, 2 * (intermediate + more_intermediate), hidden + more_hidden)
    return gate_up, torch.nn.functional.pad(w_down, (0, more_intermediate, 0, more_hidden))
