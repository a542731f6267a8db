"""Finding a function by name in somebody else's process, putting another in its place, and taking it out again."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

#: On what stands in for a function: the `Shadow` that put it there.
MARK = "__sluicegate_shadow__"

Target = str | tuple[Any, str]


@dataclass
class Place:
    """One name that leads to the function: an attribute of a module, a class or an object."""

    owner: Any
    name: str
    previous: Any
    #: The name was the owner's own, not inherited.
    own: bool
    installed: Any = None

    def put(self, replacement: Callable[..., Any]) -> None:
        wrapped: Any = replacement
        if isinstance(self.previous, staticmethod | classmethod):
            wrapped = type(self.previous)(replacement)
        setattr(self.owner, self.name, wrapped)
        self.installed = wrapped

    def restore(self) -> bool:
        """Whether the name leads to the function again; not if somebody has put something else there since."""
        if _raw(self.owner, self.name) is not self.installed:
            return False
        if self.own:
            setattr(self.owner, self.name, self.previous)
        else:
            delattr(self.owner, self.name)
        return True

    @property
    def function(self) -> Callable[..., Any]:
        found: Callable[..., Any] = (
            self.previous.__func__ if isinstance(self.previous, staticmethod | classmethod) else self.previous
        )
        return found


def describe(target: Target) -> str:
    if isinstance(target, str):
        return target
    return f"{type(target[0]).__module__}:{type(target[0]).__qualname__}(...).{target[1]}"


def find(target: Target) -> Place:
    """The place that ``module:function``, ``module:Class.method`` or ``(object, "attribute")`` names.

    Raises:
        ValueError: there is no such module or attribute, it is no function, or it is shadowed already.
    """
    if isinstance(target, str):
        module, separator, path = target.partition(":")
        if not (module and separator and path):
            raise ValueError(f"target: got {target!r}, expected module:function or module:Class.method")
        try:
            owner: Any = importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"target: cannot import {module!r} ({error})") from error
        *parents, name = path.split(".")
    else:
        owner, name = target
        parents = []
    for parent in parents:
        owner = _attribute(owner, parent, target)
    _attribute(owner, name, target)
    place = Place(owner, name, _raw(owner, name), name in getattr(owner, "__dict__", {}))
    if not callable(place.function):
        raise ValueError(f"target: {describe(target)} is a {type(place.function).__name__}, expected a function")
    if isinstance(place.function, type):
        raise ValueError(f"target: {describe(target)} is a class; name one of its methods, as module:Class.method")
    if hasattr(place.function, MARK):
        raise ValueError(f"target: {describe(target)} is shadowed already; call remove() on the first shadow before")
    return place


def _attribute(owner: Any, name: str, target: Target) -> Any:
    if not hasattr(owner, name):
        raise ValueError(f"target: {describe(target)}: {_called(owner)} has no attribute {name!r}")
    return getattr(owner, name)


def _called(owner: Any) -> str:
    return repr(owner.__name__) if isinstance(owner, ModuleType | type) else f"the {type(owner).__name__}"


def _raw(owner: Any, name: str) -> Any:
    """What is stored under the name: of a class, the descriptor itself."""
    return inspect.getattr_static(owner, name, None) if isinstance(owner, type) else getattr(owner, name, None)


def elsewhere(function: Callable[..., Any], besides: Place) -> list[Place]:
    """Globals of loaded modules that are this very function: what ``from x import f`` left behind."""
    found = []
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is function and not (module is besides.owner and name == besides.name):
                found.append(Place(module, name, value, own=True))
    return found
