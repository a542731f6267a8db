"""Wrapping functions of modules that are not loaded yet, as soon as somebody imports them."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Loader(Loader):
    """A module's own loader, and then the callbacks."""

    def __init__(self, loader: Any, then: Callable[[], None]) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        # From here on the module has its own loader: whoever asks for resources or sources meets no stranger.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._then()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class AfterImport(MetaPathFinder):
    """Finds nothing by itself: it lets the others find a module that is waited for, and calls back once it is loaded."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Callable[[], None]]] = defaultdict(list)

    def when(self, module: str, then: Callable[[], None]) -> None:
        """Call ``then`` now if the module is loaded, else right after it is."""
        if module in sys.modules:
            then()
            return
        self.waiting[module].append(then)
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.waiting:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, lambda: self._loaded(fullname))
                return spec
        return None

    def _loaded(self, module: str) -> None:
        for then in self.waiting.pop(module, []):
            then()


AFTER_IMPORT = AfterImport()
