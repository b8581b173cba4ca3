"""Directories of towers: as model directories, and the tokenizer beside.

checkpoints/clip_vit_b_32/
  config.json       the TowersConfig
  variables/        Orbax: {"params": ...}
  tokenizer.json    of SigLIP 2; of CLIP only where it came with the weights
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import jax
from etils import epath

from sam_jax.checkpoint import CONFIG_FILE, CheckpointError, Variables, load_variables, write_directory
from sam_jax.config import COMPUTE_DTYPES, TowersConfig, to_dict, towers_config_from_dict
from sam_jax.config.checks import require
from sam_jax.text.embedding import LoadedTowers
from sam_jax.text.tokenizers import TextError, open_tokenizer
from sam_jax.text.towers import init_towers

TOKENIZER_FILE = "tokenizer.json"
FORMAT = "sam_jax.towers.v1"


def save_towers(path: epath.PathLike, config: TowersConfig, variables: Variables, tokenizer: bytes | None) -> None:
    """Writes a directory of towers, which appears under its name only when it is complete.

    Args:
      path: a directory that does not exist yet, local or gs://.
      tokenizer: the content of a tokenizer.json; None for CLIP's own vocabulary.

    Raises:
      CheckpointError: the directory exists already.
    """
    files = {} if tokenizer is None else {TOKENIZER_FILE: tokenizer}
    write_directory(path, {"format": FORMAT, "towers": to_dict(config)}, variables, files=files)


def load_towers(path: epath.PathLike, dtype: str = "float32") -> LoadedTowers:
    """The towers of a directory, ready to embed texts and images.

    Args:
      path: a directory that `sam-jax convert from-clip` wrote, local or gs://.
      dtype: compute dtype, "float32" or the faster "bfloat16".

    Raises:
      CheckpointError: there is no such directory, it is incomplete, or it holds something else.
      TextError: the tokenizer's library is not installed.
    """
    require(dtype in COMPUTE_DTYPES, f"dtype {dtype!r} is not one of {', '.join(COMPUTE_DTYPES)}")
    config = load_towers_config(path)
    file = epath.Path(path) / TOKENIZER_FILE
    try:
        tokenizer = open_tokenizer(config, file.read_bytes() if file.exists() else None)
    except TextError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    shapes: Any = jax.eval_shape(partial(init_towers, config), jax.random.key(0))
    return LoadedTowers(config, load_variables(path, shapes), tokenizer, dtype)


def load_towers_config(path: epath.PathLike) -> TowersConfig:
    """The TowersConfig of a directory. Raises CheckpointError that says what is missing or wrong."""
    root = epath.Path(path)
    file = root / CONFIG_FILE
    if not file.exists():
        found = "holds no config.json" if root.exists() else "does not exist"
        raise CheckpointError(f"{root} {found}; expected a directory written by `sam-jax convert from-clip`")
    try:
        content = json.loads(file.read_text())
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is {content.get('format')!r}, not {FORMAT!r}")
        return towers_config_from_dict(content["towers"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is no config of towers ({error}); expected a directory written by `sam-jax convert from-clip`"
        ) from error
