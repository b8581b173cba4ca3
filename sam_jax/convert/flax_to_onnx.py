"""Converts a model directory of this library to ONNX: an encoder, and a decoder as the official export's users expect.

Both are run beside the model before anything is written (onnx_checks.py).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from etils import epath

import sam_jax
from sam_jax.convert.errors import ConversionError, check_new_directory
from sam_jax.convert.onnx_checks import Reference, check_decoder, check_encoder
from sam_jax.convert.onnx_functions import decoder_function, encoder_function
from sam_jax.convert.onnx_graphs import enlarge_masks, sizes_of, take_orig_im_size, tidy, trace, with_any_points

PARTS = ("encoder", "decoder")
PRECISIONS = ("float32", "float16", "int8")
_NEEDED = ("jax2onnx", "onnx", "onnxruntime", "onnx_ir")
# Protocol buffers end at 2 GiB; larger weights lie in a file of their own.
_MAX_BYTES = 2**31 - 2**20


def convert(
    source: str,
    target: str,
    precision: str = "float32",
    return_single_mask: bool = False,
    low_res_only: bool = False,
    crf: bool | None = None,
    parts: tuple[str, ...] = PARTS,
) -> None:
    """Writes the directory `target` with `encoder.onnx` and `decoder.onnx`, and says how they compare with the model.

    Args:
      source: a model directory, or "vit_tiny", the bundled model.
      target: a directory that does not exist yet, local or gs://.
      precision: of the weights: "float32", "float16", or "int8" by onnxruntime's dynamic quantisation.
      return_single_mask: the decoder gives one mask, chosen as the official export does, in place of all.
      low_res_only: the decoder leaves it to its caller to enlarge masks.
      crf: edge refinement in the decoder; None is as the model has it.
      parts: which of the two.

    Raises:
      ConversionError: the target exists, a package of the extra is missing, or a file does not compute what the model
        does.
    """
    check_new_directory(target)
    with needs_onnx():
        import jax2onnx  # noqa: F401  before the model is loaded
        import onnxruntime  # noqa: F401

        model, variables = sam_jax.load_model(source, crf=crf, kernels="xla")
        reference = Reference(model, variables)
        with tempfile.TemporaryDirectory(prefix="sam_jax_onnx_") as name:
            directory = Path(name)
            for part in parts:
                file = directory / f"{part}.onnx"
                if part == "encoder":
                    graph, check = encoder(model, variables), check_encoder
                else:
                    graph = decoder(model, variables, return_single_mask, low_res_only)
                    check = partial(check_decoder, single=return_single_mask)
                _save(graph, file, precision)
                print(f"{file.name}: {_size(directory, part):.1f} MB, {check(file, reference, precision)}")
            _publish(directory, epath.Path(target))
    print(f"{target}: written, from {source}")


def encoder(model: sam_jax.Sam, variables: Any) -> Any:
    """The image encoder as an ONNX model: input_image, orig_im_size -> image_embeddings (and image_details)."""
    graph = trace(encoder_function(model, variables), "encoder")
    take_orig_im_size(graph, model.config.image_size)
    tidy(graph, _facts(model))
    return graph


def decoder(model: sam_jax.Sam, variables: Any, return_single_mask: bool = False, low_res_only: bool = False) -> Any:
    """Prompt encoder and mask decoder as an ONNX model with the official export's inputs and outputs.

    With `low_res_only` it has no `masks`, but low_res_masks, and refined_masks of models with edge refinement.
    """
    graph = with_any_points(lambda points: decoder_function(model, variables, points, return_single_mask), "decoder")
    if model.config.crf or not low_res_only:
        take_orig_im_size(graph, model.config.image_size)
    if not low_res_only:
        masks = 1 if return_single_mask else model.config.mask_decoder.num_masks
        enlarge_masks(graph, masks, model.config.image_size)
    tidy(graph, _facts(model))
    return graph


@contextlib.contextmanager
def needs_onnx() -> Iterator[None]:
    """Turns a missing package of the extra into a ConversionError that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        raise ConversionError(f"{error.name} is not installed; ONNX needs it: pip install 'sam_jax[onnx]'") from None


def _facts(model: sam_jax.Sam) -> dict[str, str]:
    c = model.config
    return {"sam_jax": sam_jax.__version__, "image_size": str(c.image_size), "mask_threshold": str(c.mask_threshold)}


def _save(graph: Any, file: Path, precision: str) -> None:
    import onnx

    if precision == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        blocked = sizes_of(graph)
        graph = convert_float_to_float16(graph, keep_io_types=True, node_block_list=blocked)
    if precision != "int8":
        large = graph.ByteSize() > _MAX_BYTES
        onnx.save_model(graph, file, save_as_external_data=large, location=f"{file.name}.data")
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = file.with_suffix(".float32")
    onnx.save_model(graph, whole)
    quantize_dynamic(whole, file, weight_type=QuantType.QInt8)
    whole.unlink()


def _size(directory: Path, part: str) -> float:
    return sum(file.stat().st_size for file in directory.glob(f"{part}.onnx*")) / 1e6


def _publish(directory: Path, target: epath.Path) -> None:
    """Copies the files; the directory appears under its name only when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.parent / f".{target.name}.unfinished"
    if unfinished.exists():
        unfinished.rmtree()
    unfinished.mkdir()
    try:
        for file in directory.iterdir():
            (unfinished / file.name).write_bytes(file.read_bytes())
        unfinished.rename(target)
    except BaseException:
        unfinished.rmtree(missing_ok=True)
        raise
