"""lm-eval's own GSM8K tasks, on the hub's data or on files of the same format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from accuracy.tasks import Asked, Task

#: lm-eval's files, and which split of a folder each of a task's splits is.
TASKS = {
    "gsm8k": "gsm8k/gsm8k.yaml",
    "gsm8k_cot": "gsm8k/gsm8k-cot.yaml",
    "gsm8k_platinum": "gsm8k_platinum/gsm8k-platinum.yaml",
}


def task(name: str, folder: Path | None = None) -> str | dict[str, Any]:
    """What ``simple_evaluate(tasks=[...])`` takes: the official task, its data from `folder` if one is named.

    The prompts, examples, filters and version stay lm-eval's; only where the questions come from is changed.

    Raises ValueError for an unknown task, or a folder without train.jsonl and test.jsonl.
    """
    if name not in TASKS:
        raise ValueError(f"task: got {name!r}, expected one of {', '.join(TASKS)}")
    if folder is None:
        return name
    import lm_eval

    config: dict[str, Any] = yaml.safe_load(
        (Path(lm_eval.__file__).parent / "tasks" / TASKS[name]).read_text(encoding="utf-8")
    )
    splits = {config[key] for key in ("training_split", "fewshot_split", "test_split") if config.get(key)}
    files = {split: folder / f"{split}.jsonl" for split in sorted(splits)}
    if missing := [path.name for path in files.values() if not path.is_file()]:
        raise ValueError(f"--gsm8k: {folder} has no {' and no '.join(missing)}, expected GSM8K's files of these names")
    config.pop("dataset_name", None)
    config.pop("tag", None)
    return config | {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(path.resolve()) for split, path in files.items()}},
    }


def asked(name: str, folder: Path | None = None, limit: int | None = None) -> Task:
    """The task as lm-eval would ask it, with its own examples and seeds.

    Raises ValueError for an unknown task, one whose data cannot be had, or one that is asked in more ways than by prompts.
    """
    from lm_eval.tasks import TaskManager

    try:
        manager: Any = TaskManager()
        # What older versions have instead of `load` warns in newer ones.
        if hasattr(manager, "load"):
            found = manager.load([task(name, folder)])["tasks"]
        else:
            found = manager.load_task_or_group([task(name, folder)])
    except (OSError, ConnectionError) as error:
        raise ValueError(f"--task {name}: its data cannot be had ({error}); name a folder with --gsm8k") from error
    (one,) = found.values()
    # What `simple_evaluate` does with its default seeds: the same examples for everybody.
    one.set_fewshot_seed(seed=1234)
    one.build_all_requests(limit=limit, rank=0, world_size=1)
    return Task(name, str(one.VERSION), tuple(_asked(request) for request in sorted(one.instances, key=_place)))


def _place(request: Any) -> int:
    return int(request.doc_id)


def _asked(request: Any) -> Asked:
    prompt, options = request.args
    until = options.get("until") or ()
    most = next((options[key] for key in ("max_gen_toks", "max_new_tokens", "max_tokens") if options.get(key)), 256)
    if options.get("do_sample") and float(options.get("temperature") or 0):
        raise ValueError(f"task: it samples at temperature {options['temperature']}, expected greedy answers")
    return Asked(prompt, str(request.doc["answer"]), (until,) if isinstance(until, str) else tuple(until), int(most))
