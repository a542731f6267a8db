"""Strict mode: the switch that makes operators check values they would otherwise have to trust."""

import os


def strict_mode() -> bool:
    """True while the environment has SLUICEGATE_STRICT=1. Read on every call, so a test can turn it on for one."""
    return os.environ.get("SLUICEGATE_STRICT") == "1"
