"""Names that have moved: they still work where they were, and say where they are."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(old: str, new: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module `old` whose names are in the module `new` now, as `names` (old to new) says."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        warnings.warn(f"{old}.{name} is {new}.{names[name]} now", FutureWarning, stacklevel=2)
        return getattr(importlib.import_module(new), names[name])

    return find
