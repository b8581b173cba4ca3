"""The TPU compiler's estimates of the library's programs, without a TPU: the tables in docs/performance.md.

    python benchmarks/tpu_aot.py encoder --size b l h --topology v5e:1 v6e:1
    python benchmarks/tpu_aot.py encoder --size b --attention xla
    python benchmarks/tpu_aot.py blocks kernels --size b l h
    python benchmarks/tpu_aot.py decoder --size b --prompts 64 --json decoder.json
    python benchmarks/tpu_aot.py interaction
    python benchmarks/tpu_aot.py everything --size h
    python benchmarks/tpu_aot.py train --size b --topology v5e:4x4        # five to ten minutes; see tpu_training.py

Needs libtpu (pip install libtpu). Parameters and compute are bfloat16. All figures are the compiler's estimates per
chip; nothing runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import tyro
from tyro.conf import Positional, arg

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import tpu_training
from sam_jax import Prompts, config
from sam_jax.estimates import tpu as tpu_estimates
from sam_jax.inference import mask_candidates, point_decoding
from sam_jax.inference.encoding import EncodedImages, prepare_embeddings
from sam_jax.models.sam import Sam, inference_variables, init_variables
from sam_jax.ops import crf
from sam_jax.ops.attention import packed_attention
from sam_jax.ops.transforms import resized_size
from sam_jax.training import losses
from sam_jax.video import matching, step

Kind = Literal["encoder", "blocks", "kernels", "decoder", "interaction", "edges", "everything", "video", "train"]
SIZES = {"b": config.vit_b, "l": config.vit_l, "h": config.vit_h}
COLUMNS = {
    "program": "{program}",
    "topology": "{topology}",
    "useful GFLOP": "{useful_gflop:.0f}",
    "HLO GFLOP": "{hlo_gflop:.0f}",
    "HLO GB": "{hlo_gb:.2f}",
    "est. ms": "{ms:.2f}",
    "of it kernels ms": "{kernel_ms:.2f} ({kernels})",
    "roofline ms": "{roofline_ms:.2f}",
    "est. MFU": "{mfu:.1%}",
    "arguments GiB": "{arguments_gib:.2f}",
    "temporaries GiB": "{temporaries_gib:.3f}",
    "peak GiB": "{peak_gib:.2f}",
    "collectives": "{collectives}",
    "compile s": "{compile_s:.0f}",
}


@dataclasses.dataclass(frozen=True)
class ProgramOptions:
    """What to compile; tpu_run.py takes the same options."""

    program: Annotated[Positional[tuple[Kind, ...]], arg(metavar="PROGRAM", help="what to compile")]
    size: Annotated[tuple[Literal["b", "l", "h"], ...], arg(help="size of the ViT")] = ("b",)
    batch: Annotated[int, arg(help="images")] = 1
    prompts: Annotated[int, arg(help="prompts per image, for the decoder")] = 64
    attention: Annotated[
        Literal["auto", "xla", "pallas"], arg(help="see ImageEncoderConfig; also the decoder's kernels")
    ] = "auto"
    scan: Annotated[bool, arg(help="see ImageEncoderConfig")] = False
    dtype: Annotated[Literal["float32", "bfloat16", "int8"], arg(help="compute type")] = "bfloat16"
    json: Annotated[Path | None, arg(help="also write the figures there")] = None


@dataclasses.dataclass(frozen=True)
class Options(ProgramOptions):
    """The command line."""

    topology: Annotated[tuple[str, ...], arg(help="such as v5e:1 v6e:1 v5p:1; for train, whole slices: v5e:4x4")] = (
        "v5e:1",
    )


def main() -> None:
    """Prints one line per compilation, as Markdown."""
    args = parse()
    try:
        rows = print_rows(args)
        if "train" in args.program:
            chosen = [(size, topology, args.batch) for size in args.size for topology in args.topology]
            rows += tpu_training.print_rows(chosen, [64])
    except tpu_estimates.TopologyError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def print_rows(args: Any) -> list[dict[str, Any]]:
    """Rows of `compile_rows`, each printed as soon as it is compiled."""
    rows = []
    for row in compile_rows(args):
        if not rows:
            print("Estimates of the TPU compiler for one chip, not measurements.\n")
            print("| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), sep="\n")
        rows.append(row)
        cells = row | {"collectives": row["collectives"] or "none"}
        print("| " + " | ".join(cell.format(**cells) for cell in COLUMNS.values()) + " |", flush=True)
    return rows


def parse(argv: Sequence[str] | None = None) -> Options:
    """The command line."""
    return tyro.cli(Options, description=__doc__, args=argv)


def compile_rows(args: Any) -> Iterator[dict[str, Any]]:
    """Compiles the chosen programs; yields a row of figures for each.

    Raises:
      tpu_estimates.TopologyError: libtpu is missing or does not know a topology.
    """
    chips = {name: tpu_estimates.topology_devices(name) for name in args.topology}
    for kind, size, topology in itertools.product(args.program, args.size, chips):
        if kind == "train":
            continue
        chip, devices = chips[topology]
        for program in PROGRAMS[kind](size, args):
            yield {"topology": topology} | estimate(program, chip, devices[0])


@dataclasses.dataclass(frozen=True)
class Program:
    """A function, the shapes of its arguments and the FLOPs that its task needs."""

    name: str
    function: Any
    arguments: tuple[Any, ...]
    useful_flops: float


def encoder(size: str, args: Any, **changes: Any) -> list[Program]:
    """`Sam.encode_image` at the native size."""
    model, variables = _model(size, args, **changes)
    side = model.config.image_size
    images = jax.ShapeDtypeStruct((args.batch, side, side, 3), jnp.float32)
    function = partial(model.apply, method="encode_image")
    useful = args.batch * encoder_flops(model.config)
    depth = f" of {model.config.image_encoder.depth} blocks" if changes else ""
    dtype = "" if args.dtype == "bfloat16" else f", {args.dtype}"
    name = f"encoder {size.upper()}{depth}, {args.batch} images, attention {args.attention}{dtype}"
    return [Program(name, function, (variables, images), useful)]


def blocks(size: str, args: Any) -> list[Program]:
    """The encoder with two windowed blocks and a global one: quick to compile, with every kind of layer."""
    return encoder(size, args, depth=3, global_attn_indexes=(2,))


def kernels(size: str, args: Any) -> list[Program]:
    """Attention only: over windows and over the whole grid, each forward, and forward and backward."""
    sam = config.for_inference(SIZES[size](), args.dtype)
    c = sam.image_encoder
    programs = []
    for kind, side in (("windows", c.window_size), ("grid", c.grid_size)):
        count = args.batch * ((-(-c.grid_size // side)) ** 2)
        qkv = jax.ShapeDtypeStruct((count, side**2, 3 * c.embed_dim), jnp.dtype(sam.dtype))
        table = jax.ShapeDtypeStruct((2 * side - 1, c.embed_dim // c.num_heads), jnp.float32)
        forward = partial(packed_attention, num_heads=c.num_heads, implementation=args.attention)
        both = jax.grad(lambda *x, f=forward: f(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))
        products = 4 * count * side**4 * c.embed_dim
        name = f"attention {size.upper()} {kind}, {args.attention}"
        programs.append(Program(name, forward, (qkv, table, table), products))
        programs.append(Program(f"{name}, with gradient", both, (qkv, table, table), 3 * products))
    return programs


def decoder(size: str, args: Any) -> list[Program]:
    """`Sam.decode_masks` for prompts of one point each, three masks per prompt."""
    model, variables = _model(size, args)
    side = model.config.image_encoder.grid_size
    embeddings = jax.ShapeDtypeStruct((args.batch, side, side, model.config.embedding_channels), jnp.float32)
    coords = jax.ShapeDtypeStruct((args.batch, args.prompts, 1, 2), jnp.float32)
    labels = jax.ShapeDtypeStruct((args.batch, args.prompts, 1), jnp.int32)

    def function(variables: Any, embeddings: Any, coords: Any, labels: Any) -> Any:
        prompts = Prompts(point_coords=coords, point_labels=labels)
        return model.apply(variables, embeddings, prompts, multimask_output=True, method="decode_masks")

    arguments = variables, embeddings, coords, labels
    name = f"decoder {size.upper()}, {args.batch} x {args.prompts} prompts"
    return [Program(name, function, arguments, tpu_estimates.matmul_flops(function, *arguments))]


def interaction(size: str, args: Any) -> list[Program]:
    """One of a training step's interactions: prompts with 16 tokens and the mask before, loss and gradients."""
    points = config.InteractionConfig().num_points + 1
    sam = config.for_training(SIZES[size](), dropout_rate=0.1)
    sam = dataclasses.replace(sam, mask_decoder=dataclasses.replace(sam.mask_decoder, kernels=args.attention))
    model, loss = Sam(sam), config.LossConfig()
    variables = jax.eval_shape(partial(init_variables, model), jax.random.key(0))
    params = {name: part for name, part in variables["params"].items() if name != "image_encoder"}
    side, batch = sam.image_encoder.grid_size, (args.batch, args.prompts)
    shape = jax.ShapeDtypeStruct
    embeddings = shape((args.batch, side, side, sam.embedding_channels), jnp.float32)
    prompts = Prompts(
        point_coords=shape((*batch, points, 2), jnp.float32),
        point_labels=shape((*batch, points), jnp.int32),
        boxes=shape((*batch, 4), jnp.float32),
        box_valid=shape(batch, jnp.bool_),
    )
    planes = shape((*batch, 16, side * side), jnp.float32)

    def total(learned: Any, constants: Any, prompts: Any, planes: Any, targets: Any, seed: Any) -> jax.Array:
        params, embeddings = learned
        arguments = {"params": params, "constants": constants}, embeddings, prompts, planes, slice(1), False
        rngs = {"dropout": jax.random.key(seed)}
        logits, ious = model.apply(*arguments, method="predict_planes", rngs=rngs)
        found = losses.mask_losses(loss, logits, ious, targets)
        return losses.prompt_loss(loss, found, jnp.zeros(batch, bool)).sum()

    targets, seed = shape(planes.shape, jnp.bool_), shape((), jnp.int32)
    arguments = (params, embeddings), variables["constants"], prompts, planes, targets, seed
    function = jax.value_and_grad(total)
    name = f"interaction {size.upper()}, {args.batch} x {args.prompts} prompts, kernels {args.attention}"
    return [Program(name, function, arguments, tpu_estimates.matmul_flops(function, *arguments))]


def edges(size: str, args: Any) -> list[Program]:
    """The work of `SamConfig.crf`: preparing an image's pixels once, then refining each prompt's mask."""
    side, patch, low = 1024, 16, 256
    image, input_size = jax.ShapeDtypeStruct((side, side, 3), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    prepare = partial(crf.crf_pixels, patch_size=patch)
    masks = jax.ShapeDtypeStruct((args.prompts, 1, low, low), jnp.float32)
    refined = masks, jax.eval_shape(prepare, image, input_size)
    return [
        Program(f"pixels of an image of {side} px", prepare, (image, input_size), 0.0),
        Program(f"edges for {args.prompts} masks", crf.refine_masks, refined, 0.0),
    ]


def everything(size: str, args: Any) -> list[Program]:
    """The programs of everything mode for an image of 1500 x 2250 and 32 x 32 points: the encoder runs once, the
    decoder 16 times, and the filters once per chunk of masks whose predicted IoU is high enough."""
    (encode,) = encoder(size, args)
    model, variables = _model(size, args)
    grid = model.config.image_encoder.grid_size
    image, input_size, chunk = (1500, 2250), (683, 1024), mask_candidates.MAX_CHUNK
    crop = mask_candidates.Crop((0, 0, *image[::-1]), image, input_size, EncodedImages(jnp.zeros(()), None))
    enlarge = mask_candidates.enlargement(model, config.AmgConfig(), crop)
    shape = jax.ShapeDtypeStruct((1, grid, grid, model.config.embedding_channels), jnp.float32)
    embedding = jax.eval_shape(partial(prepare_embeddings, model), variables, shape)
    points = jax.ShapeDtypeStruct((64, 2), jnp.float32)
    planes = jax.ShapeDtypeStruct((3 * 64, 16, grid * grid), jnp.float32)
    indices = jax.ShapeDtypeStruct((chunk,), jnp.int32)
    decode = partial(point_decoding.decode_points, model)
    least_iou = jax.ShapeDtypeStruct((), jnp.float32)
    examined = planes, indices, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), enlarge)
    return [
        encode,
        Program(f"64 of 1024 points {size.upper()}", decode, (variables, embedding, points, least_iou), 0.0),
        Program(f"filters of {chunk} masks at 1500 x 2250", _examine, examined, 0.0),
    ]


def video(size: str, args: Any) -> list[Program]:
    """The step of `sam-jax video` after the encoder: two objects, frames of 854 x 480, five frames remembered."""
    model, variables = _model(size, args)
    c, settings, objects = model.config, config.VideoConfig(), 2
    grid = matching.cell_grid(c, settings, resized_size((480, 854), c.image_size))
    side, slots = c.image_encoder.grid_size, settings.anchors + settings.memory
    embedding = jax.ShapeDtypeStruct((side, side, c.embedding_channels), jnp.float32)
    frame = jax.ShapeDtypeStruct((c.image_size, c.image_size, 3), jnp.uint8)
    describe = partial(matching.describe_cells, c, settings, grid=grid)
    cells = jax.eval_shape(describe, embedding, frame)

    def function(variables: Any, embedding: Any, frame: Any, *remembered: Any) -> Any:
        encoded = step.EncodedFrame(embedding, describe(embedding, frame))
        return step.carry_to_frame(model, variables, encoded, *remembered, settings=settings, grid=grid)

    remembered = [((slots, *cells.shape), jnp.float32), ((slots, objects, cells.shape[0]), jnp.float32)]
    remembered += [((slots, objects), jnp.bool_), ((slots,), jnp.float32)]
    arguments = variables, embedding, frame, *(jax.ShapeDtypeStruct(*one) for one in remembered)
    useful = tpu_estimates.matmul_flops(function, *arguments)
    return [Program(f"masks of {objects} objects carried {size.upper()}, 480 x 854", function, arguments, useful)]


PROGRAMS = {
    "encoder": encoder,
    "blocks": blocks,
    "kernels": kernels,
    "decoder": decoder,
    "interaction": interaction,
    "edges": edges,
    "everything": everything,
    "video": video,
}


def encoder_flops(sam: config.SamConfig) -> float:
    """FLOPs of the matrix products that the official image encoder needs for one image at its native size.

    Attention in windows counts padding, which takes part in it; dense layers count real tokens only.
    """
    c, out = sam.image_encoder, sam.prompt_embed_dim
    tokens, width = c.grid_size**2, c.embed_dim
    windows = (-(-c.grid_size // c.window_size)) ** 2
    num_global = len(c.global_attn_indexes)

    def attention(length: int, side: int) -> float:
        return 2 * length * width * (2 * side**2 + 2 * side)

    dense = c.depth * 2 * tokens * width**2 * (4 + 2 * c.mlp_ratio)
    window = (c.depth - num_global) * attention(windows * c.window_size**2, c.window_size)
    patches = 2 * tokens * 3 * c.patch_size**2 * width
    neck = 2 * tokens * (width * out + 9 * out**2)
    return dense + num_global * attention(tokens, c.grid_size) + window + patches + neck


def _examine(planes: jax.Array, indices: jax.Array, enlarge: dict[str, jax.Array]) -> Any:
    return mask_candidates.examine(planes, indices, **enlarge)


def estimate(program: Program, chip: tpu_estimates.Chip, device: Any) -> dict[str, Any]:
    """Compiles a program for one device; returns a row of figures, times in milliseconds."""
    where = jax.sharding.SingleDeviceSharding(device)
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), program.arguments)
    found = tpu_estimates.compile_for(chip, jax.jit(program.function), *arguments)
    traffic = (found.arguments + found.outputs) * tpu_estimates.GIB
    roofline = max(program.useful_flops / chip.flops, traffic / chip.bandwidth)
    return {
        "program": program.name,
        "useful_gflop": program.useful_flops / 1e9,
        "hlo_gflop": found.flops / 1e9,
        "hlo_gb": found.bytes / 1e9,
        "ms": found.seconds * 1e3,
        "kernel_ms": found.kernel_seconds * 1e3,
        "kernels": found.kernels,
        "roofline_ms": roofline * 1e3,
        "mfu": program.useful_flops / chip.flops / found.seconds,
        "arguments_gib": found.arguments,
        "temporaries_gib": found.temporaries,
        "peak_gib": found.peak,
        "collectives": found.collectives,
        "compile_s": found.compile_seconds,
    }


def _model(size: str, args: Any, **changes: Any) -> tuple[Sam, Any]:
    """The model, and the shapes of its variables in inference."""
    sam = config.for_inference(SIZES[size](), args.dtype, args.attention)
    image_encoder = dataclasses.replace(sam.image_encoder, scan=args.scan, **changes)
    model = Sam(dataclasses.replace(sam, image_encoder=image_encoder))

    def make(key: jax.Array) -> Any:
        return inference_variables(model.config, init_variables(model, key))

    return model, jax.eval_shape(make, jax.random.key(0))


if __name__ == "__main__":
    main()
