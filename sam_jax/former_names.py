"""Names that have moved: the old ones still work, with a warning that names the new place."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(old: str, new: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module `old` whose names are now in the module `new`; `names` maps old to new names."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        warnings.warn(f"{old}.{name} is {new}.{names[name]} now", FutureWarning, stacklevel=2)
        return getattr(importlib.import_module(new), names[name])

    return find
