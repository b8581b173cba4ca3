"""Reads state dicts without running code and, if the format allows, without copying the file into memory.

All other converters see only numpy arrays, which share the memory of the tensors.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from sam_jax.convert.errors import ConversionError
from sam_jax.convert.torchscript_files import is_torchscript, read_torchscript

if TYPE_CHECKING:
    import torch

ZIP_MAGIC = b"PK\x03\x04"
WRAPPERS = ("model", "state_dict")


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a file as memory-mapped arrays: `.safetensors`, or any file written by `torch.save`.

    Of a TorchScript archive (`torch.jit.save`) only the tensors are read, into memory; its code is never run.
    A `.pth` may hold the state dict itself, or under "model" or "state_dict".

    Raises:
      ConversionError: the file is missing, truncated, not a state dict, or a pickle that would run code.
    """
    path = Path(path)
    if not path.exists():
        raise ConversionError(f"{path} does not exist; give the path of a .pth or .safetensors file")
    if path.is_dir():
        raise ConversionError(f"{path} is a directory; give the .pth or .safetensors file in it")
    if is_torchscript(path):
        return read_torchscript(path)
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return {key: _as_array(tensor) for key, tensor in tensors.items()}


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # torch cannot convert it to numpy
        return tensor.view(torch.int16).numpy().view(jnp.dtype("bfloat16"))
    is_float8 = tensor.is_floating_point() and tensor.itemsize == 1
    return (tensor.float() if is_float8 else tensor).numpy()


def read_decoder_heads(path: str | os.PathLike[str]) -> int | None:
    """Attention heads of the mask decoder from a Hugging Face config.json beside `path`, or None."""
    file = Path(path).parent / "config.json"
    try:
        heads = json.loads(file.read_text())["mask_decoder_config"]["num_attention_heads"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return heads if isinstance(heads, int) and heads > 0 else None


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConversionError(f"{path} is truncated or not a safetensors file ({error}); download it again") from error


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    import torch

    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise ConversionError(_refusal(path, str(error))) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ConversionError(
            f"{path} is truncated or not a PyTorch checkpoint ({_first_sentence(error)}); download it again"
        ) from error
    tensors = _unwrap(path, content)
    if not is_zip:
        print(f"note: {path} has the format of PyTorch before 1.6, which cannot be mapped: read whole", file=sys.stderr)
    return tensors


def _refusal(path: Path, message: str) -> str:
    if found := re.search(r"(?:GLOBAL|class|function) ([\w.]+\.[\w.]+)", message):
        return (
            f"{path} contains code or objects ({found[1]}) and is not loaded; if you trust the file, load it "
            "elsewhere and save the plain tensors: torch.save(model.state_dict(), path)"
        )
    return f"{path} is truncated or not a PyTorch checkpoint; download it again"


def _first_sentence(error: Exception) -> str:
    """The first sentence of an error by torch; for other errors, whose texts do not help, the name of the type."""
    text = " ".join(str(error).split()) if isinstance(error, RuntimeError) else ""
    return re.split(r"\. |; ", text, maxsplit=1)[0][:120] or type(error).__name__


def _unwrap(path: Path, content: Any) -> dict[str, torch.Tensor]:
    import torch

    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path} holds a {type(content).__name__}, not a state dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ConversionError(
                f"{path} is not a state dict: its entry {key!r} is a {type(value).__name__}, not a tensor"
            )
    return dict(content)
