"""`sam-jax infer`: its options, which of them may be combined, and what they run."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import time
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from sam_jax.cli import parsing, text_prompts
from sam_jax.config import AmgConfig

if TYPE_CHECKING:
    from sam_jax.batch.image_list import ImageList
    from sam_jax.batch.one_image import ImagePrompts
    from sam_jax.batch.prompt_files import PromptTable
    from sam_jax.batch.result_files import ResultFiles
    from sam_jax.batch.run import RunOptions, Summary
    from sam_jax.batch.segmenters import Segmenter
    from sam_jax.models.sam import Sam

MAX_TILED_PIXELS = 2**32 - 1
_ONE = ("point", "box", "mask_input")
_TILING = ("tile", "tile_overlap")
_MANY = ("prompts", "image_ids", "format", "workers", "overwrite", "max_pixels")
_HOSTS = ("distributed", "coordinator", "num_hosts", "host")
_RAY = ("ray", "ray_workers", "ray_resources")
_SOME_FAILED = 1


def _field_help() -> dict[str, str]:
    """Each field's first sentence, from the docstring of AmgConfig."""
    texts: dict[str, str] = {}
    for entry in re.split(r"\n  (?=\w)", (inspect.getdoc(AmgConfig) or "").partition("Attributes:")[2]):
        names, _, text = " ".join(entry.split()).partition(": ")
        texts |= dict.fromkeys(names.split(", "), re.split(r"(?<=\w)[.] |(?<=\w{6}); ", text)[0].rstrip("."))
    return texts


def _everything_options() -> list[tuple[str, Any, Any]]:
    """The fields of AmgConfig, each with its help, except output_mode, which the result files determine."""
    texts, hints = _field_help(), typing.get_type_hints(AmgConfig)
    return [
        (field.name, Annotated[hints[field.name], arg(help=texts[field.name])], field.default)
        for field in dataclasses.fields(AmgConfig)
        if field.name != "output_mode"
    ]


if TYPE_CHECKING:
    Everything = AmgConfig
else:
    Everything = dataclasses.make_dataclass("Everything", _everything_options(), frozen=True)
_EVERYTHING = Everything()


@dataclasses.dataclass(frozen=True)
class Infer:
    """Segment images: everything in them, or the objects given by prompts.

    One image, with prompts:
        sam-jax infer IMAGE --point 500,375               one point: three masks, from part to whole
        sam-jax infer IMAGE --point 500,375 --point 520,300,0    a second point, off the object
        sam-jax infer IMAGE --box 425,600,700,875 --box 75,275,1725,850    one object per box
        sam-jax infer IMAGE --point 500,375 --mask-input logits.npy        refine an earlier mask
        sam-jax infer IMAGE --text "a dog" --text "the ball" --text-model DIR    what phrases name

    Any number of images:
        sam-jax infer IMAGE --format overlay              everything mode: masks of everything in the image
        sam-jax infer images/ more/*.jpg @list.txt        many images; run again to continue after an interruption
        sam-jax infer images/ --prompts boxes.json        the objects at each image's boxes or points
        sam-jax infer plan.tif --tile 1024                an image too large to be segmented at once
        sam-jax infer gs://BUCKET/images --out gs://BUCKET/masks --distributed    the same command on every host
        sam-jax infer gs://BUCKET/images --out gs://BUCKET/masks --ray auto    the same on the hosts of a Ray cluster

    Coordinates are pixels of the image. Results are written to --out. With --point, --box, --text or --mask-input they
    are IMAGE.masks.json (COCO RLE), a PNG per mask and an overlay. Otherwise they are IMAGE.json in SA-1B's format, in
    the same sub-directories as the images, and the files that --format adds; failures.jsonl lists images that failed.
    Exit codes: 0 all done, 1 some images failed, 2 wrong input.
    """

    images: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="IMAGES", help="files, directories, 'dir/*.jpg', @LIST; local or gs://"),
    ]
    checkpoint: parsing.Checkpoint = None
    out: Annotated[str, arg(metavar="DIR", help="directory for results")] = "sam_out"
    dtype: parsing.Dtype = None
    crf: parsing.Crf = False
    no_crf: parsing.NoCrf = False

    point: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(metavar="X,Y[,L]", help="for one image; label L: 1 on the object, 0 off it"),
    ] = ()
    box: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="X0,Y0,X1,Y1", help="for one image; one object per box")
    ] = ()
    mask_input: Annotated[
        str | None, arg(metavar="M.npy", help="for one image; (1, 4h, 4w) float logits of an earlier prediction")
    ] = None

    text: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="PHRASE", help="of any number of images: what to look for")
    ] = ()
    text_model: Annotated[
        str | None, arg(metavar="DIR", help="CLIP or SigLIP 2, as `sam-jax convert from-clip` writes it")
    ] = None
    text_threshold: Annotated[float, arg(help="masks that a phrase names with a lower score are left out")] = 0.5
    masks_per_text: Annotated[int | None, arg(help="at most so many masks of a phrase; None is all")] = None

    prompts: Annotated[
        str | None, arg(metavar="FILE", help="JSON with prompts for each image, or COCO boxes (docs/inference.md)")
    ] = None
    image_ids: Annotated[
        str | None, arg(metavar="FILE", help="COCO instances file with the image names for COCO results")
    ] = None
    format: Annotated[str, arg(metavar="F,F", help="json (always), png, overlay, coco; comma-separated")] = "json"
    overwrite: Annotated[bool, arg(help="segment finished images again")] = False
    workers: Annotated[int, arg(help="threads that read, and as many that write")] = 2
    max_pixels: Annotated[int | None, arg(help="larger images fail; None is 179 million, more with --tile")] = None

    tile: Annotated[
        int | None, arg(metavar="PIXELS", help="segment tiles of this side and merge them: for huge images")
    ] = None
    tile_overlap: Annotated[
        int | None, arg(metavar="PIXELS", help="overlap of neighbouring tiles; None is a quarter of the side")
    ] = None
    everything: Annotated[Everything, arg(name="")] = _EVERYTHING

    distributed: Annotated[bool, arg(help="connect the hosts with each other: a pod slice, Slurm, ...")] = False
    coordinator: Annotated[
        str | None, arg(metavar="HOST:PORT", help="address of host 0, if hosts cannot find it themselves")
    ] = None
    num_hosts: Annotated[int | None, arg(help="number of hosts that share the images")] = None
    host: Annotated[int | None, arg(help="number of this host, from 0")] = None
    ray: Annotated[
        str | None, arg(metavar="ADDRESS", help="run on a Ray cluster: auto, HOST:6379, ray://HOST:10001 or local")
    ] = None
    ray_workers: Annotated[int | None, arg(help="at most so many workers; None is as many as the hosts hold")] = None
    ray_resources: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(metavar="NAME=N", help="what a worker takes, such as TPU=4; None is a host's TPUs, else GPUs, else CPUs"),
    ] = ()

    def given(self, *names: str) -> dict[str, Any]:
        """The named options that are not at their defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: getattr(self, name) for name in names if getattr(self, name) != defaults[name]}

    @property
    def given_everything(self) -> dict[str, Any]:
        """Options of everything mode that are not at their defaults."""
        return {
            field.name: getattr(self.everything, field.name)
            for field in dataclasses.fields(self.everything)
            if getattr(self.everything, field.name) != field.default
        }

    @property
    def edge_refinement(self) -> bool | None:
        """The value of --crf and --no-crf; None means the model's own setting."""
        return parsing.edge_refinement(self.crf, self.no_crf)


def check(command: Infer) -> None:
    """Raises ValueError for options that contradict each other, so that none is silently ignored."""

    def flag(name: str) -> str:
        return f"--{name.replace('_', '-')}"

    text_prompts.check(command)
    everything, many = command.given_everything, command.given(*_MANY, *_TILING, *_HOSTS, *_RAY)
    if command.text or command.text_model:
        everything = {}  # where candidates come from
    one = list(command.given(*_ONE))
    if not command.images:
        raise ValueError("no images given; name files, directories, patterns or @LIST (see --help)")
    if one and len(command.images) > 1:
        raise ValueError(f"{flag(one[0])} is for one image, not {len(command.images)}; use --prompts FILE")
    if one and (other := next(iter([*many, *everything]), None)):
        raise ValueError(f"{flag(other)} does not go with {flag(one[0])}")
    if "prompts" in many and (other := next(iter([*command.given(*_TILING), *everything]), None)):
        raise ValueError(f"{flag(other)} is for everything mode, which --prompts switches off")
    goes_with = {"image_ids": "prompts", "coordinator": "distributed", "ray_workers": "ray", "ray_resources": "ray"}
    for name, needed in goes_with.items():
        if name in many and needed not in many:
            raise ValueError(f"{flag(name)} goes with {flag(needed)}")
    if (command.host is None) != (command.num_hosts is None):
        raise ValueError("--host and --num-hosts go together")
    if command.ray and (other := next(iter(command.given(*_HOSTS)), None)):
        raise ValueError(f"{flag(other)} does not go with --ray, which finds the hosts")


def one_image_prompts(command: Infer) -> ImagePrompts:
    """The prompts of the command line. Raises ValueError for malformed ones."""
    import numpy as np

    from sam_jax.batch.one_image import ImagePrompts
    from sam_jax.inference.images import read_mask_input

    points = [_numbers(text, (2, 3), "X,Y or X,Y,LABEL") for text in command.point]
    boxes = [_numbers(text, (4,), "X0,Y0,X1,Y1") for text in command.box]
    return ImagePrompts(
        points=np.array([p[:2] for p in points]) if points else None,
        labels=np.array([p[2] if len(p) == 3 else 1 for p in points]) if points else None,
        boxes=np.array(boxes) if boxes else None,
        mask_input=read_mask_input(command.mask_input) if command.mask_input else None,
    )


def result_settings(command: Infer) -> dict[str, Any]:
    """All options that results depend on, so that results with other options do not count as done."""
    model = {"checkpoint": command.checkpoint, "dtype": command.dtype, "crf": command.edge_refinement}
    if command.prompts or command.text:
        return model | {"mode": "prompts"} | text_prompts.result_settings(command) | command.given_everything
    everything = dataclasses.asdict(AmgConfig(**command.given_everything))
    del everything["points_per_batch"]  # affects memory, not results
    return model | {"mode": "everything"} | everything | command.given(*_TILING)


def build_segmenter(command: Infer, model: Sam, variables: Any, prompts: PromptTable | None) -> Segmenter:
    """The segmenter for many images: everything mode, or prompts."""
    from sam_jax.batch.segmenters import EverythingSegmenter

    if prompts is not None:
        return text_prompts.build_segmenter(command, model, variables, prompts.has_texts)
    return EverythingSegmenter(model, variables, **command.given(*_TILING), **command.given_everything)


def load_segmenter(command: Infer, prompts: PromptTable | None) -> Segmenter:
    """The same, with the model that the command names."""
    import sam_jax

    loaded = sam_jax.load_model(command.checkpoint, command.dtype, command.edge_refinement)
    return build_segmenter(command, *loaded, prompts)


def run_options(command: Infer, host: int, hosts: int) -> RunOptions:
    """Options of a run over many images. With tiles, images may be as large as run lengths can count."""
    from sam_jax.batch.run import RunOptions
    from sam_jax.inference.images import MAX_PIXELS

    largest = command.max_pixels or (MAX_TILED_PIXELS if command.tile else MAX_PIXELS)
    return RunOptions(max_pixels=largest, workers=command.workers, overwrite=command.overwrite, host=host, hosts=hosts)


def segment_one(command: Infer, prompts: ImagePrompts) -> None:
    """Segments one image with the prompts of the command line, writes the results and prints a summary."""
    import sam_jax
    from sam_jax.batch import one_image

    (path,) = command.images
    image = sam_jax.read_image(path)
    predictor = sam_jax.SamPredictor(*sam_jax.load_model(command.checkpoint, command.dtype, command.edge_refinement))
    start = time.perf_counter()
    predicted = one_image.segment_image(predictor, image, prompts)
    seconds = time.perf_counter() - start
    overlay = one_image.write_results(command.out, path, image, prompts, predicted)
    scores = ", ".join(f"{iou:.2f}" for iou in predicted.iou_predictions)
    h, w = image.shape[:2]
    print(f"{path} ({w}x{h}): {len(predicted.masks)} masks in {seconds:.1f} s, predicted IoU {scores}")
    print(f"wrote {overlay}, with {overlay.stem.removesuffix('.overlay')}.masks.json and a PNG per mask beside it")


def segment_many(command: Infer) -> int:
    """Segments all unfinished images; returns the exit code."""
    from sam_jax import runtime
    from sam_jax.batch.image_list import find_images
    from sam_jax.batch.prompt_files import read_prompts
    from sam_jax.batch.result_files import ResultFiles
    from sam_jax.batch.run import run_images, write_coco

    host, hosts = command.host or 0, command.num_hosts or 1
    if command.distributed:
        host, hosts = runtime.connect_hosts(command.coordinator, command.num_hosts, command.host)
    options, formats = run_options(command, host, hosts), [name.strip() for name in command.format.split(",")]
    images = find_images(command.images, exclude=command.out)
    prompts = text_prompts.table(command, one_image_prompts(command)) if command.text else None
    if command.prompts:
        prompts = read_prompts(command.prompts, command.image_ids)
    files = ResultFiles(command.out, formats, result_settings(command))
    if command.ray:
        summary = _run_on_cluster(command, images, files, prompts, options)
    else:
        summary = run_images(images, load_segmenter(command, prompts), files, prompts, options)
    print(summary.text(files.out / options.failures_file))
    if command.distributed:
        runtime.wait_for_hosts()
    if "coco" in formats and host == 0 and (hosts == 1 or command.distributed):
        print(f"wrote {write_coco(files, images, prompts)}")
    return _SOME_FAILED if summary.failures else 0


def _run_on_cluster(
    command: Infer, images: ImageList, files: ResultFiles, prompts: PromptTable | None, options: RunOptions
) -> Summary:
    """What `run_images` does, on a Ray cluster; paths are made absolute, as workers have directories of their own."""
    from sam_jax.batch.ray_cluster import run_on_cluster
    from sam_jax.batch.ray_driver import ClusterOptions, WorkerJob
    from sam_jax.files import absolute

    cluster = ClusterOptions(str(command.ray), _resources(command.ray_resources), command.ray_workers)
    moved: dict[str, Any] = {
        name: absolute(path) for name in ("checkpoint", "text_model") if (path := getattr(command, name))
    }
    build = functools.partial(_load_on_worker, dataclasses.replace(command, **moved), prompts)
    settings, out = result_settings(command), absolute(command.out)
    job = WorkerJob(build, out, tuple(files.formats), settings, prompts, options)
    return run_on_cluster(images, job, files, cluster)


def _load_on_worker(command: Infer, prompts: PromptTable | None) -> Segmenter:
    from sam_jax.runtime import use_compilation_cache

    use_compilation_cache()
    return load_segmenter(command, prompts)


def _resources(given: Sequence[str]) -> dict[str, float] | None:
    """Resources of a worker, of NAME=N; None where none are given."""
    found = {}
    for text in given:
        name, _, count = text.partition("=")
        if not name or not count:
            raise ValueError(f"{text!r} is not of the form NAME=N, such as TPU=4")
        (found[name],) = _numbers(count, (1,), "a number")
    return found or None


def main(argv: Sequence[str] | None = None, program: str = "sam-jax infer") -> int:
    """Runs the command; bad input ends in one line on stderr and exit code 2, a full disk in 1."""
    command = parsing.parse(Infer, program, argv)

    def work() -> int:
        check(command)
        from sam_jax.batch.result_files import OutputError
        from sam_jax.runtime import use_compilation_cache

        use_compilation_cache()
        prompts = one_image_prompts(command)
        try:
            if command.text and text_prompts.is_one_image(command):
                text_prompts.segment_one(command, prompts)
            elif command.text or prompts.is_empty:
                return segment_many(command)
            else:
                segment_one(command, prompts)
        except OutputError as error:
            parsing.complain(program, error)
            return _SOME_FAILED
        return 0

    return parsing.run(program, work)


def _numbers(text: str, counts: tuple[int, ...], form: str) -> list[float]:
    """Comma-separated numbers."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts:
        raise ValueError(f"{text!r} is not of the form {form}")
    return values
