"""The tensors of a TorchScript archive, such as OpenAI's CLIP files are. Its code is never looked at, let alone run.

The archive is a zip: `data.pkl` is a pickle of the module tree, whose objects become plain dictionaries here, and each
tensor's numbers lie in a file of their own. The unpickler knows a handful of names and refuses all others.
"""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from sam_jax.convert.errors import ConversionError

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

# How a damaged pickle or archive fails.
_ASTRAY = (OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError)


def is_torchscript(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an archive that `torch.jit.save` wrote."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)


def read_torchscript(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of an archive by their dotted names: "visual.conv1.weight".

    Raises:
      ConversionError: it is truncated, or holds what no module of tensors does.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(pickled) as file:
                root = _Unpickler(file, archive, pickled.removesuffix(".pkl")).load()
    except ConversionError as error:
        raise ConversionError(f"{path} is not loaded: {error}; give a .safetensors file of the weights") from error
    except (zipfile.BadZipFile, pickle.UnpicklingError, *_ASTRAY) as error:
        raise ConversionError(
            f"{path} is truncated or not a TorchScript archive ({type(error).__name__}); download it again"
        ) from error
    return dict(_named_tensors(root, ""))


class _Module:
    """Stands in for every object of the archive: its attributes alone."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file, encoding="utf-8")
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = _KNOWN.get((module, name))
        if known is None:
            raise ConversionError(f"its pickle asks for {module}.{name}, which no module of tensors needs")
        return known

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, _, _ = pid
        return np.frombuffer(self._archive.read(f"{self._folder}/{key}"), dtype)


def _rebuild_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """A view of a storage, whose strides count elements; checked, as numpy would read beyond the end."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and (offset < 0 or min(stride, default=0) < 0 or last >= len(storage)):
        raise ValueError("a tensor reaches beyond its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _same(value: Any, *_: Any) -> Any:
    return value


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        ("torch.jit._pickle", name): _same
        for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
    },
}


def _named_tensors(value: Any, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, np.ndarray):
        yield prefix, value
    elif isinstance(value, _Module):
        for name, inner in value.attributes.items():
            yield from _named_tensors(inner, f"{prefix}.{name}" if prefix else name)
