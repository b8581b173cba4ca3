"""`sam-jax zero-shot`: the tasks of the SAM paper that a model was never trained for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from sam_jax.cli import parsing

if TYPE_CHECKING:
    from sam_jax.batch.image_list import ImageList
    from sam_jax.batch.prompt_files import PromptTable
    from sam_jax.batch.result_files import ResultFiles
    from sam_jax.batch.run import Summary
    from sam_jax.batch.segmenters import Segmenter
    from sam_jax.zero_shot.coco_scores import Annotations
    from sam_jax.zero_shot.mask_runs import ImageIds

_Images = Annotated[
    Positional[tuple[str, ...]], arg(metavar="IMAGES", help="files, directories, 'dir/*.jpg', @LIST; local or gs://")
]
_Out = Annotated[str, arg(metavar="DIR", help="where results go")]
_Workers = Annotated[int, arg(help="threads that read, and as many that write")]
_Overwrite = Annotated[bool, arg(help="do finished images again")]
_Annotations = Annotated[str | None, arg(metavar="FILE", help="COCO instances or LVIS file: score the masks")]
_PointsPerBatch = Annotated[int, arg(help="points decoded at once")]
_SOME_FAILED = 1


@dataclasses.dataclass(frozen=True)
class Edges:
    """Find edges: Sobel's filter of the masks of a 16x16 grid, thinned. The SAM paper's section 7.2.

    Examples:
        sam-jax zero-shot edges images/ --out edges/
        sam-jax zero-shot edges BSDS500/data/images/val --bsds BSDS500/data/groundTruth/val --floors
        sam-jax zero-shot edges MAPS/ --maps --bsds BSDS500/data/groundTruth/val

    Written to --out: a PNG per image, 255 the strongest edge; a run that was cut off goes on when started again.
    With --bsds the edges are compared with those that people drew: ODS, OIS, AP and R50 are printed, and report.html
    has curves and images. Exit codes: 0 all done, 1 some images are not, 2 wrong input.
    """

    images: _Images
    checkpoint: parsing.Checkpoint = None
    dtype: parsing.Dtype = None
    crf: parsing.Crf = False
    no_crf: parsing.NoCrf = False
    out: _Out = "edges"
    bsds: Annotated[
        str | None, arg(metavar="DIR", help="BSDS500, or a folder of .mat files named like the images: score edges")
    ] = None
    maps: Annotated[bool, arg(help="IMAGES are edges already, grey and 255 for certain: only score them")] = False
    floors: Annotated[bool, arg(help="also score Sobel's filter of the image, and Canny's with scikit-image")] = False
    thresholds: Annotated[int, arg(help="at which edges are scored")] = 99
    processes: Annotated[int | None, arg(help="that score; None is one per core")] = None
    points_per_side: Annotated[int, arg(help="points along each side of the grid")] = 16
    points_per_batch: _PointsPerBatch = 64
    box_nms_thresh: Annotated[float, arg(help="of two masks whose boxes overlap more, one goes")] = 0.7
    workers: _Workers = 2
    overwrite: _Overwrite = False

    def run(self) -> int:
        """Finds edges and scores them."""
        from sam_jax.batch.image_list import find_images
        from sam_jax.zero_shot.boundary_benchmark import THRESHOLDS
        from sam_jax.zero_shot.edge_run import ScoringOptions, score_edges
        from sam_jax.zero_shot.edge_scores import find_boundaries

        given = {"thresholds": self.thresholds != THRESHOLDS, "processes": self.processes, "floors": self.floors}
        if self.bsds is None and (name := next((name for name, is_given in given.items() if is_given), None)):
            raise ValueError(f"--{name} goes with --bsds DIR")
        if self.maps and (self.bsds is None or self.floors):
            raise ValueError("--maps only scores edges: it goes with --bsds DIR, and without --floors")
        images = find_images(self.images, exclude=self.out)
        scoring = {"processes": self.processes} if self.processes is not None else {}
        options = self.bsds and ScoringOptions(self.bsds, self.floors, self.thresholds, **scoring)
        if options:
            find_boundaries(images, options.boundaries)  # better now than after all the work
        failed, edges, name = 0, {image.path: image.path for image in images}, "edges"
        if not self.maps:
            failed, edges, name = self._find(images)
        if options:
            about = {"checkpoint": name, "points_per_side": self.points_per_side, "box_nms_thresh": self.box_nms_thresh}
            score_edges(images, edges, self.out, name, options, {} if self.maps else about)
        return _SOME_FAILED if failed else 0

    def _find(self, images: ImageList) -> tuple[int, dict[str, str], str]:
        """How many images failed, the edges of the others, and the model's name."""
        import sam_jax
        from sam_jax.checkpoint import model_path
        from sam_jax.zero_shot.edge_files import EdgeFiles
        from sam_jax.zero_shot.edges import EdgeSegmenter

        grid: dict[str, Any] = {"points_per_side": self.points_per_side, "box_nms_thresh": self.box_nms_thresh}
        refinement = parsing.edge_refinement(self.crf, self.no_crf)
        settings = {"checkpoint": self.checkpoint, "dtype": self.dtype, "crf": refinement}
        files = EdgeFiles(self.out, settings | grid)
        model, variables = sam_jax.load_model(self.checkpoint, self.dtype, refinement)
        segmenter = EdgeSegmenter(model, variables, points_per_batch=self.points_per_batch, **grid)
        summary = _run_images(images, segmenter, files, self.workers, self.overwrite, "edge map")
        failed = {image.path for image, _ in summary.failures}
        edges = {image.path: str(files.path(image)) for image in images if image.path not in failed}
        return len(failed), edges, str(self.checkpoint or model_path(None).name)


@dataclasses.dataclass(frozen=True)
class Proposals:
    """Propose objects: the masks of a 64x64 grid, best first, at most 1000 an image. The SAM paper's section 7.3.

    Examples:
        sam-jax zero-shot proposals images/ --out proposals/
        sam-jax zero-shot proposals val2017/ --annotations lvis_v1_val.json

    Written to --out: IMAGE.json in SA-1B's format with a score for each mask, and coco_results.json of all images; a
    run that was cut off goes on when started again. With --annotations mask AR@1000 is printed, by size, and by
    frequency for LVIS, and report.html has images. Exit codes: 0 all done, 1 some images are not, 2 wrong input.
    """

    images: _Images
    checkpoint: parsing.Checkpoint = None
    dtype: parsing.Dtype = None
    crf: parsing.Crf = False
    no_crf: parsing.NoCrf = False
    out: _Out = "proposals"
    annotations: _Annotations = None
    most: Annotated[int, arg(help="proposals of an image")] = 1000
    single_output: Annotated[bool, arg(help="one mask a point, not three: the paper's ablation")] = False
    points_per_side: Annotated[int, arg(help="points along each side of the grid")] = 64
    points_per_batch: _PointsPerBatch = 32
    box_nms_thresh: Annotated[float, arg(help="of two masks whose boxes overlap more, the worse one goes")] = 0.9
    workers: _Workers = 2
    overwrite: _Overwrite = False

    def run(self) -> int:
        """Proposes objects and scores them."""
        from sam_jax.batch.image_list import find_images
        from sam_jax.zero_shot.coco_scores import proposal_recall
        from sam_jax.zero_shot.mask_runs import ImageIds
        from sam_jax.zero_shot.proposals import ProposalOptions, ProposalSegmenter

        names = ("most", "single_output", "points_per_side", "box_nms_thresh")
        chosen: dict[str, Any] = {name: getattr(self, name) for name in names}
        options = ProposalOptions(points_per_batch=self.points_per_batch, **chosen)
        _ = options.amg  # checked before anything is loaded
        images = find_images(self.images, exclude=self.out)
        annotations = _open_annotations(self.annotations)
        ids = ImageIds(images, annotations)
        files, loaded = _open_run(self, chosen)
        segmenter = ProposalSegmenter(*loaded, options)
        summary = _run_images(images, segmenter, files, self.workers, self.overwrite, "proposal")
        measure = partial(proposal_recall, most=self.most)
        return _finish(self, "proposals", images, files, ids, annotations, summary, measure)


@dataclasses.dataclass(frozen=True)
class Instances:
    """Masks for the boxes of any detector, each refined once. The SAM paper's section 7.4.

    Examples:
        sam-jax zero-shot instances val2017/ --boxes detections.json --annotations instances_val2017.json

    --boxes is a COCO or LVIS results file, [{"image_id", "category_id", "bbox", "score"}]. Written to --out: IMAGE.json
    in SA-1B's format, and coco_results.json, the same detections with masks; a run that was cut off goes on when
    started again. With --annotations AP, AP by size and boundary AP are printed, and report.html has images.
    Exit codes: 0 all done, 1 some images are not, 2 wrong input.
    """

    images: _Images
    boxes: Annotated[str | None, arg(metavar="FILE", help="a detector's COCO or LVIS results")] = None
    checkpoint: parsing.Checkpoint = None
    dtype: parsing.Dtype = None
    crf: parsing.Crf = False
    no_crf: parsing.NoCrf = False
    out: _Out = "instances"
    annotations: _Annotations = None
    boxes_per_batch: Annotated[int, arg(help="boxes that the decoder works on at once")] = 32
    workers: _Workers = 2
    overwrite: _Overwrite = False

    def run(self) -> int:
        """Makes masks and scores them."""
        from sam_jax.batch.image_list import find_images
        from sam_jax.batch.prompt_files import read_prompts
        from sam_jax.zero_shot.coco_scores import mask_precision
        from sam_jax.zero_shot.instances import InstanceSegmenter
        from sam_jax.zero_shot.mask_runs import ImageIds

        if self.boxes is None:
            raise ValueError("--boxes FILE is missing: the results file of a detector")
        images = find_images(self.images, exclude=self.out)
        annotations = _open_annotations(self.annotations)
        prompts = read_prompts(self.boxes, self.annotations if annotations and annotations.names_files else None)
        prompts.check(images)
        ids = ImageIds(images, annotations, prompts)
        files, loaded = _open_run(self, {})
        segmenter = InstanceSegmenter(*loaded, self.boxes_per_batch)
        summary = _run_images(images, segmenter, files, self.workers, self.overwrite, "mask", prompts)
        return _finish(self, "instances", images, files, ids, annotations, summary, mask_precision)


def _open_annotations(path: str | None) -> Annotations | None:
    """What masks are scored against; whatever scoring needs is there."""
    if path is None:
        return None
    from sam_jax.zero_shot.coco_scores import Annotations, check_evaluator

    check_evaluator()
    return Annotations(path)


def _open_run(command: Proposals | Instances, settings: dict[str, Any]) -> tuple[ResultFiles, tuple[Any, Any]]:
    """Where results go, and the model."""
    import sam_jax
    from sam_jax.batch.result_files import ResultFiles

    refinement = parsing.edge_refinement(command.crf, command.no_crf)
    model = {"checkpoint": command.checkpoint, "dtype": command.dtype, "crf": refinement}
    files = ResultFiles(command.out, ["json", "coco"], model | {"mode": type(command).__name__} | settings)
    return files, sam_jax.load_model(command.checkpoint, command.dtype, refinement)


def _finish(
    command: Proposals | Instances,
    task: str,
    images: ImageList,
    files: ResultFiles,
    ids: ImageIds,
    annotations: Annotations | None,
    summary: Summary,
    measure: Callable[[list[dict[str, Any]], Annotations], dict[str, float]],
) -> int:
    """Puts results together, scores them where there are annotations, and tells the exit code."""
    from sam_jax.checkpoint import model_path
    from sam_jax.zero_shot.mask_runs import only_images, read_results, show_scores

    if annotations is None:
        print(f"wrote {files.write_coco(images, ids)}")
    else:
        path, results = read_results(files, images, ids, annotations)
        print(f"wrote {path}")
        failed = {image.path for image, _ in summary.failures}
        done = {ids(image) for image in images if image.path not in failed}
        scores = measure(results, only_images(annotations, done))
        name = str(command.checkpoint or model_path(None).name)
        show_scores(task, scores, files, images, {"checkpoint": name, "images": len(done)})
    return _SOME_FAILED if summary.failures else 0


def _run_images(
    images: ImageList,
    segmenter: Segmenter,
    files: ResultFiles,
    workers: int,
    overwrite: bool,
    noun: str,
    prompts: PromptTable | None = None,
) -> Summary:
    from sam_jax.batch.run import RunOptions, run_images

    options = RunOptions(workers=workers, overwrite=overwrite)
    summary = run_images(images, segmenter, files, prompts, options, noun)
    print(summary.text(files.out / options.failures_file))
    return summary


TASKS: dict[str, tuple[type, str]] = {
    "edges": (Edges, "edges of images; ODS, OIS, AP on BSDS500"),
    "proposals": (Proposals, "masks of all objects, best first; AR@1000 on COCO and LVIS"),
    "instances": (Instances, "masks for a detector's boxes; AP on COCO and LVIS"),
}
_LINES = "\n".join(f"  {{program}} {name:<10} {text}" for name, (_, text) in TASKS.items())
HELP = f"""The SAM paper's tasks that a model was never trained for.

usage: {{program}} TASK ...

{_LINES}

`{{program}} TASK --help` explains each."""


def main(argv: Sequence[str] | None = None, program: str = "sam-jax zero-shot") -> int:
    """Runs a task; bad input ends in one line on stderr and exit code 2, a full disk in 1."""
    chosen = parsing.choose(TASKS, program, HELP, argv)
    if isinstance(chosen, int):
        return chosen
    (task, _), program, rest = chosen
    command: Any = parsing.parse(task, program, rest)

    def work() -> int:
        from sam_jax.batch.result_files import OutputError
        from sam_jax.runtime import use_compilation_cache

        use_compilation_cache()
        try:
            done: int = command.run()
        except OutputError as error:
            parsing.complain(program, error)
            return _SOME_FAILED
        return done

    return parsing.run(program, work)
