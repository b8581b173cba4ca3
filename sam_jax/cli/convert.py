"""`sam-jax convert`: weights from and to PyTorch, and models to ONNX."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from sam_jax.cli import parsing

_TARGET = "model directory to write, local or gs://; must not exist yet"


@dataclasses.dataclass(frozen=True)
class FromTorch:
    """Convert SAM's weights from PyTorch to a model directory.

    Reads official state dicts, those of HQ-SAM and MobileSAM, and those of the Hugging Face `SamModel` and
    `SamHQModel`, as .pth or .safetensors, also with a wrapper's prefix before all names (`module.`, `model.`,
    `_orig_mod.`). Size and family are inferred from the tensors. Each of the network's tensors must be used exactly
    once, and every leaf of the model filled; otherwise nothing is written.
    """

    source: Annotated[
        Positional[str], arg(metavar="SOURCE", help="official or Hugging Face SAM weights, .pth or .safetensors")
    ]
    target: Annotated[Positional[str], arg(metavar="TARGET", help=_TARGET)]
    decoder_num_heads: Annotated[
        int | None,
        arg(help="attention heads of the mask decoder; None: as in config.json beside a Hugging Face file, else 8"),
    ] = None

    def run(self) -> None:
        """Converts."""
        from sam_jax.convert import torch_to_flax

        torch_to_flax.convert(self.source, self.target, self.decoder_num_heads)


@dataclasses.dataclass(frozen=True)
class FromMae:
    """Convert the encoder of a masked autoencoder (MAE) to a model directory for training to start from.

    Parts that MAE lacks (relative positions, neck, prompt encoder, mask decoder) are newly initialised; parts that SAM
    lacks are dropped.
    """

    source: Annotated[
        Positional[str],
        arg(metavar="SOURCE", help="official MAE weights of ViT-B, ViT-L or ViT-H, .pth or .safetensors"),
    ]
    target: Annotated[Positional[str], arg(metavar="TARGET", help=_TARGET)]
    seed: Annotated[int, arg(help="random seed for the parts that MAE lacks")] = 0

    def run(self) -> None:
        """Converts."""
        from sam_jax.convert import mae_to_flax

        mae_to_flax.convert(self.source, self.target, self.seed)


@dataclasses.dataclass(frozen=True)
class ToTorch:
    """Convert a model directory to a PyTorch file that the official code loads. Values are preserved bit for bit."""

    source: Annotated[Positional[str], arg(metavar="SOURCE", help="model directory, local or gs://")]
    target: Annotated[Positional[str], arg(metavar="TARGET", help=".pth file to write; must not exist yet")]

    def run(self) -> None:
        """Converts."""
        from sam_jax.convert import flax_to_torch

        flax_to_torch.convert(self.source, self.target)


@dataclasses.dataclass(frozen=True)
class ToOnnx:
    """Convert a model directory to ONNX: encoder.onnx, and decoder.onnx with the official export's inputs and outputs.

    Each file is run in onnxruntime beside the model before anything is written; one that does not compute what the
    model does is an error. docs/onnx.md has the inputs, and shows their use. Needs pip install "sam_jax[onnx]".
    """

    source: Annotated[
        Positional[str], arg(metavar="SOURCE", help="model directory, local or gs://, or vit_tiny, the bundled model")
    ]
    target: Annotated[
        Positional[str], arg(metavar="TARGET", help="directory to write, local or gs://; must not exist yet")
    ]
    precision: Annotated[
        Literal["float32", "float16", "int8"], arg(help="of the weights; int8 by onnxruntime's dynamic quantisation")
    ] = "float32"
    return_single_mask: Annotated[
        bool, arg(help="the decoder gives one mask, chosen as the official export does, in place of all")
    ] = False
    low_res_only: Annotated[
        bool,
        arg(help="the decoder gives low_res_masks alone, for programs that enlarge the one they show, as pages do"),
    ] = False
    part: Annotated[Literal["both", "encoder", "decoder"], arg(help="which of the two files")] = "both"
    crf: parsing.Crf = False
    no_crf: parsing.NoCrf = False

    def run(self) -> None:
        """Converts."""
        from sam_jax.convert import flax_to_onnx

        refine = parsing.edge_refinement(self.crf, self.no_crf)
        parts = flax_to_onnx.PARTS if self.part == "both" else (self.part,)
        outputs = self.return_single_mask, self.low_res_only
        flax_to_onnx.convert(self.source, self.target, self.precision, *outputs, refine, parts)


@dataclasses.dataclass(frozen=True)
class FromClip:
    """The image and text towers of CLIP or SigLIP 2, for text prompts.

    Reads the Hugging Face `CLIPModel` and `SiglipModel` as .safetensors, and OpenAI's CLIP files (ViT-B-32.pt and the
    like), of which the tensors alone are read: the code in them is never run. Size and family are read off the
    tensors. SigLIP's tokenizer.json has to lie beside its weights.
    """

    source: Annotated[
        Positional[str], arg(metavar="SOURCE", help="weights of CLIP or SigLIP 2, .safetensors, .pth or .pt")
    ]
    target: Annotated[Positional[str], arg(metavar="TARGET", help=_TARGET)]

    def run(self) -> None:
        """Converts."""
        from sam_jax.convert import clip_to_flax

        clip_to_flax.convert(self.source, self.target)


COMMANDS = {"from-torch": FromTorch, "from-mae": FromMae, "from-clip": FromClip, "to-torch": ToTorch, "to-onnx": ToOnnx}
HELP = """Convert weights from and to PyTorch, and models to ONNX.

Needs pip install "sam_jax[convert]"; to-onnx needs "sam_jax[onnx]".

    {program} from-torch sam_vit_b_01ec64.pth checkpoints/sam_vit_b        official or Hugging Face SAM
    {program} from-mae mae_pretrain_vit_base.pth checkpoints/mae_vit_b     for training to start from
    {program} from-clip ViT-B-32.pt checkpoints/clip_vit_b_32              CLIP or SigLIP 2, for text prompts
    {program} to-torch checkpoints/sam_vit_b back.pth                      for the official code
    {program} to-onnx vit_tiny onnx                                        for onnxruntime and browsers

`{program} COMMAND --help`, for instance `{program} from-torch --help`, explains each."""


def main(argv: Sequence[str] | None = None, program: str = "sam-jax convert") -> int:
    """Runs one of the converters, on the CPU, so that the accelerator stays free."""
    return parsing.run_chosen(COMMANDS, program, HELP, argv, _run)


def _run(command: Any) -> None:
    import jax

    from sam_jax.convert.errors import needs_torch

    jax.config.update("jax_platforms", "cpu")
    with needs_torch():
        command.run()
