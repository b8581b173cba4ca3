"""The command line of `infer.py`: what can be said, what goes together, and what it stands for."""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from sam_jax.batch.one_image import ImagePrompts
from sam_jax.batch.prompt_files import PromptTable, read_prompts
from sam_jax.batch.run import RunOptions
from sam_jax.batch.segmenters import EverythingSegmenter, PromptedSegmenter, Segmenter
from sam_jax.config import INFERENCE_DTYPES, AmgConfig, SamConfig
from sam_jax.inference.images import MAX_PIXELS, read_mask_input
from sam_jax.models.sam import Sam

MAX_TILED_PIXELS = 2**32 - 1
_TILING = ("tile", "tile_overlap")
_HOSTS = ("distributed", "coordinator", "num_hosts", "host")
_MANY = ("prompts", "image_ids", "format", "workers", "overwrite", "max_pixels", *_TILING, *_HOSTS)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as all others of the script."""

    def error(self, message: str) -> NoReturn:
        """Exits with code 2."""
        self.exit(2, f"infer.py: {message} (see --help)\n")


def everything_options() -> list[dataclasses.Field[Any]]:
    """The fields of AmgConfig that the command line has: all but the form of masks, which files prescribe."""
    return [field for field in dataclasses.fields(AmgConfig) if field.name != "output_mode"]


def parse_arguments(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses and checks what goes together; options that are not given are not in the namespace, or None."""
    parser = OneLineParser(
        prog="infer.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help="files, directories, patterns ('dir/*.jpg'), @LIST; local or gs://"
    )
    parser.add_argument("--checkpoint", default=None, metavar="DIR", help="model; default: the bundled vit_tiny")
    parser.add_argument("--out", default="sam_out", metavar="DIR", help="where results go (default: sam_out)")
    parser.add_argument(
        "--dtype", default=None, choices=INFERENCE_DTYPES, help="compute type (default: float32); int8 is for TPUs"
    )
    parser.add_argument(
        "--crf",
        default=None,
        action=argparse.BooleanOptionalAction,
        help="refine masks at the image's edges (CRF), or not (default: the model's; on for vit_tiny)",
    )
    _add_prompt_options(parser.add_argument_group("prompts for one image"))
    _add_many_options(parser.add_argument_group("many images"))
    _add_everything_options(parser.add_argument_group("everything mode"))
    _add_host_options(parser.add_argument_group("several hosts, each with the same command"))
    args = parser.parse_intermixed_args(argv)
    _check(parser, args)
    return args


def one_image_prompts(args: argparse.Namespace) -> ImagePrompts:
    """The prompts of the command line. Raises ValueError for one of another form."""
    points = [_numbers(text, (2, 3), "X,Y or X,Y,LABEL") for text in args.point]
    boxes = [_numbers(text, (4,), "X0,Y0,X1,Y1") for text in args.box]
    return ImagePrompts(
        points=np.array([p[:2] for p in points]) if points else None,
        labels=np.array([p[2] if len(p) == 3 else 1 for p in points]) if points else None,
        boxes=np.array(boxes) if boxes else None,
        mask_input=read_mask_input(args.mask_input) if args.mask_input else None,
    )


def given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those of some options that the command line has."""
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def given_everything_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of everything mode that the command line has."""
    return given(args, [field.name for field in everything_options()])


def result_settings(args: argparse.Namespace) -> dict[str, Any]:
    """All of the command line that the results of an image depend on, so that none are taken for those of others."""
    model = {"checkpoint": args.checkpoint, "dtype": args.dtype, "crf": args.crf}
    if hasattr(args, "prompts"):
        return model | {"mode": "prompts"}
    everything = dataclasses.asdict(AmgConfig(**given_everything_options(args)))
    del everything["points_per_batch"]  # which memory decides, and results do not
    return model | {"mode": "everything"} | everything | given(args, _TILING)


def build_segmenter(args: argparse.Namespace, model: Sam, variables: Any) -> Segmenter:
    """What is to be done with each of many images."""
    if hasattr(args, "prompts"):
        return PromptedSegmenter(model, variables)
    tiling = given(args, _TILING)
    return EverythingSegmenter(model, variables, **tiling, **given_everything_options(args))


def read_prompt_file(args: argparse.Namespace) -> PromptTable | None:
    """The prompts of many images, where the command line names a file of them."""
    return read_prompts(args.prompts, getattr(args, "image_ids", None)) if hasattr(args, "prompts") else None


def formats(args: argparse.Namespace) -> list[str]:
    """What to write."""
    return [name.strip() for name in getattr(args, "format", "json").split(",")]


def run_options(args: argparse.Namespace, host: int, hosts: int) -> RunOptions:
    """How to go about many images. Images for tiles may be as large as run lengths can count."""
    default = MAX_TILED_PIXELS if hasattr(args, "tile") else MAX_PIXELS
    options = {"max_pixels": default} | given(args, ("workers", "overwrite", "max_pixels"))
    return RunOptions(**options, host=host, hosts=hosts)


def _add_prompt_options(group: Any) -> None:
    group.add_argument("--point", action="append", default=[], metavar="X,Y[,L]", help="label 1 on, 0 off the object")
    group.add_argument("--box", action="append", default=[], metavar="X0,Y0,X1,Y1", help="corners; repeat for objects")
    group.add_argument(
        "--mask-input", default=None, metavar="M.npy", help="(1, 4h, 4w) float logits of an earlier prediction"
    )


def _add_many_options(group: Any) -> None:
    group.add_argument(
        "--prompts", metavar="FILE", help="JSON with prompts of each image, or COCO boxes (docs/inference.md)"
    )
    group.add_argument("--image-ids", metavar="FILE", help="COCO instances file that names the images of COCO results")
    group.add_argument("--format", metavar="F,F", help="json (always), png, overlay, coco: any, with commas between")
    group.add_argument("--overwrite", action="store_true", help="do finished images again")
    group.add_argument("--workers", type=int, metavar="N", help="threads that read, and that write (default: 2 each)")
    group.add_argument(
        "--max-pixels", type=int, metavar="N", help=f"larger images are refused (default: {MAX_PIXELS:,})"
    )


def _add_host_options(group: Any) -> None:
    group.add_argument("--distributed", action="store_true", help="the hosts know each other: a pod slice, Slurm, ...")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of host 0, for hosts that cannot find out")
    group.add_argument("--num-hosts", type=int, metavar="N", help="how many hosts share the images")
    group.add_argument("--host", type=int, metavar="I", help="which of them this is, from 0")


def _add_everything_options(group: Any) -> None:
    group.add_argument(
        "--tile", type=int, metavar="PIXELS", help="look at tiles of this side and merge: for huge images"
    )
    group.add_argument("--tile-overlap", type=int, metavar="PIXELS", help="of neighbouring tiles (default: a quarter)")
    texts, hints = _field_help(), typing.get_type_hints(AmgConfig)
    for field in everything_options():
        flag, text = "--" + field.name.replace("_", "-"), texts.get(field.name, "")
        kind, own = hints[field.name], hasattr(SamConfig, field.name)
        if isinstance(kind, types.UnionType):
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        if kind is bool:
            group.add_argument(flag, action="store_true", help=text)
        else:
            shown = f"{field.default:.4g}" if field.default is not None else "the model's own" if own else "off"
            group.add_argument(flag, type=kind, metavar="N" if kind is int else "X", help=f"{text} (default: {shown})")


def _field_help() -> dict[str, str]:
    """Each field's first sentence, from the docstring of AmgConfig."""
    texts: dict[str, str] = {}
    for entry in re.split(r"\n      (?=\w)", (AmgConfig.__doc__ or "").partition("Attributes:")[2]):
        names, _, text = " ".join(entry.split()).partition(": ")
        sentence = re.split(r"(?<=\w)[.] |(?<=\w{6}); ", text)[0].rstrip(".").replace("%", "%%")
        texts |= dict.fromkeys(names.split(", "), sentence)
    return texts


def _check(parser: OneLineParser, args: argparse.Namespace) -> None:
    """What contradicts itself is refused, not ignored."""
    everything, many = given_everything_options(args), given(args, _MANY)
    one = [name for name in ("point", "box", "mask_input") if getattr(args, name)]
    if one and len(args.images) > 1:
        parser.error(f"--{one[0].replace('_', '-')} is for one image, not {len(args.images)}; use --prompts FILE")
    if one and (other := next(iter([*many, *everything]), None)):
        parser.error(f"--{other.replace('_', '-')} does not go with --{one[0].replace('_', '-')}")
    tiling = given(args, _TILING)
    if "prompts" in many and (other := next(iter([*tiling, *everything]), None)):
        parser.error(f"--{other.replace('_', '-')} is for everything mode, which --prompts switches off")
    if "image_ids" in many and "prompts" not in many:
        parser.error("--image-ids goes with --prompts RESULTS.json")
    if "coordinator" in many and "distributed" not in many:
        parser.error("--coordinator goes with --distributed")
    if ("host" in many) != ("num_hosts" in many):
        parser.error("--host and --num-hosts go together")


def _numbers(text: str, counts: tuple[int, ...], form: str) -> list[float]:
    """Comma-separated numbers."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts:
        raise ValueError(f"{text!r} is not of the form {form}")
    return values
