"""A mismatch on disk: ``mismatch-<n>.json`` says everything in words, ``mismatch-<n>.safetensors`` holds the tensors.

Neither can run code when it is read. Both are there whole or not at all, the JSON last.
"""

from __future__ import annotations

import json
import platform
import re
import threading
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.failure import Failure
from harness.files import write_whole
from harness.shadow.observation import Observation
from harness.shadow.seen import PLAIN, Opaque, Pool, Seen

if TYPE_CHECKING:
    from harness.shadow.wrapper import Shadow

KIND = "shadow"
SCHEMA_VERSION = 1

_numbers = threading.Lock()
_taken: set[Path] = set()


def save(out: Path, shadow: Shadow, failure: Failure, seen: Seen, observation: Observation | None) -> Path:
    """Write both files of a mismatch into ``out`` and return the JSON's path."""
    from safetensors.torch import save as pack

    path = _next(out)
    tensors: dict[str, Tensor] = {}
    encode = _Encoder(tensors, seen.strides)
    adapt = _importable(shadow.signature.translate) if shadow.signature.name == "adapt" else None
    record = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "target": shadow.target,
        "signature": shadow.signature.name,
        "adapt": adapt,
        "operator": shadow.signature.operators[0] if observation is None else observation.operator,
        "call": seen.call,
        "symptom": failure.symptom,
        "message": failure.message,
        "rows": [row.to_json() for row in failure.rows],
        "environment": environment(shadow.target),
        "replay": f"sluicegate replay {path}",
        "tensors": path.with_suffix(".safetensors").name,
        "seen": {
            "arguments": encode(seen.arguments, "arguments"),
            "given": list(seen.given),
            "positional": seen.positional,
            "result": encode(seen.result, "result"),
            "after": encode(seen.after, "after"),
            "pools": {
                name: {**vars(pool), "indices": shadow.signature.pools[name]} for name, pool in seen.pools.items()
            },
        },
        # The built-in translations are in the code; somebody's own may be gone when the file is read.
        "observation": encode(vars(observation), "observation")
        if observation is not None and shadow.signature.name == "adapt"
        else None,
    }
    write_whole(path.with_suffix(".safetensors"), pack(tensors))
    write_whole(path, json.dumps(record, indent=1))
    return path


def load(path: Path) -> tuple[dict[str, Any], Seen, Observation | None]:
    """What `save` wrote: the record, the call, and its observation where the record has one."""
    from safetensors.torch import load as unpack

    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("kind") != KIND or record.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{path}: no record of a shadow of schema version {SCHEMA_VERSION}")
    tensors = unpack((path.parent / record["tensors"]).read_bytes())
    strides: dict[int, tuple[int, ...]] = {}

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = ((k, v) for k, v in value.items() if k != "stride")
        if kind == "tensor":
            tensor = tensors[content]
            if "stride" in value:
                strides[id(tensor)] = tuple(value["stride"])
            return tensor
        if kind == "tuple":
            return tuple(decode(item) for item in content)
        if kind == "float":
            return float(content)
        return Opaque(content) if kind == "opaque" else {name: decode(item) for name, item in content.items()}

    kept = record["seen"]
    seen = Seen(
        decode(kept["arguments"]),
        tuple(kept["given"]),
        kept["positional"],
        decode(kept["result"]),
        decode(kept["after"]),
        pools={name: Pool(tuple(pool["shape"]), tuple(pool["stride"])) for name, pool in kept["pools"].items()},
        call=record["call"],
        strides=strides,
    )
    observation = None if record["observation"] is None else Observation(**decode(record["observation"]))
    return record, seen, observation


class _Encoder:
    """Plain data as JSON, tensors by name: every other kind of value in a dict that says which."""

    def __init__(self, tensors: dict[str, Tensor], strides: dict[int, tuple[int, ...]]) -> None:
        self.tensors, self.strides = tensors, strides

    def __call__(self, value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            # A copy each: safetensors refuses tensors that share memory.
            self.tensors[name] = value.detach().cpu().contiguous().clone()
            stride = self.strides.get(id(value))
            return {"tensor": name} | ({} if stride is None else {"stride": list(stride)})
        if isinstance(value, float) and value - value != 0:
            return {"float": str(value)}
        if isinstance(value, PLAIN):
            return value
        if isinstance(value, list | tuple):
            items = [self(item, f"{name}.{i}") for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, Mapping):
            return {"dict": {str(key): self(item, f"{name}.{key}") for key, item in value.items()}}
        return {"opaque": value.type if isinstance(value, Opaque) else type(value).__qualname__}


def _next(out: Path) -> Path:
    """The first number that is free in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    with _numbers:
        names = [p.name for p in (*out.glob("mismatch-*.json"), *(t for t in _taken if t.parent == out))]
        used = [int(match[1]) for name in names if (match := re.fullmatch(r"mismatch-(\d+)\.json", name))]
        path = out / f"mismatch-{max(used, default=0) + 1}.json"
        _taken.add(path)
    return path


def _importable(function: Any) -> str | None:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<")
    return f"{module}:{name}" if module not in (None, "__main__") and "<" not in name else None


def environment(target: str) -> dict[str, Any]:
    """Versions and GPU, and the version of the host's package."""
    host = target.partition(":")[0].partition(".")[0]
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_initialized() else None,
    }
    for distribution in packages_distributions().get(host, []):
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            found[distribution] = "unknown"
    return found
