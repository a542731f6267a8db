"""``python -m accuracy.problems FOLDER``: write train.jsonl and test.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accuracy.problems.generator import HELD_OUT, write


def main(
    folder: Annotated[Path, typer.Argument(help="Where train.jsonl and test.jsonl go.")],
    training: Annotated[int, typer.Option(help="Problems to learn.", min=1)] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the problems to learn; those held out stay the same.")] = 0,
    annotations: Annotated[bool, typer.Option(help="Put <<a*b=c>> before each result.")] = True,
) -> None:
    """Word problems in GSM8K's format."""
    write(folder, training, seed, annotations=annotations)
    typer.echo(f"{folder}: {training} problems to learn, {HELD_OUT} held out")


if __name__ == "__main__":
    typer.run(main)
