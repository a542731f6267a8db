"""Files that are there whole or not at all: somebody else reads them, or this process may end while it writes."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Put ``content`` at ``path``, text as UTF-8; until it is all written, what stood there stays."""
    draft = path.with_suffix(".draft")
    draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    draft.replace(path)
