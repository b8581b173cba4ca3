"""Writes SA-1B's released tars as tensorflow-datasets' `segment_anything`, in array_record and without TensorFlow.

Every shard is a separate job, whose file gets its final name only when complete. So an interrupted preparation can be
resumed, and Apache Beam only has to distribute shards. Images stay in the order of the tars: array_record has random
access, so readers can shuffle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from sam_jax.data.records import DataError
from sam_jax.data.sa1b.tars import find_tars
from sam_jax.data.tfds.layout import IDS_FILE, NAME, VERSION, check_unique, import_tfds, one_line, save_ids

_HOMEPAGE = "https://ai.facebook.com/datasets/segment-anything-downloads"
_COPIED = ("area", "id", "point_coords", "predicted_iou", "stability_score")  # of each annotation, unchanged


def official_features() -> Any:
    """The features of tensorflow-datasets' own builder (segment_anything 1.0.0), with their descriptions."""
    features = import_tfds().features
    annotation = features.FeaturesDict(
        {
            "area": features.Scalar(dtype=np.uint64, doc="The area in pixels of the mask."),
            "bbox": features.BBoxFeature(doc="The box around the mask, in TFDS format."),
            "crop_box": features.BBoxFeature(doc="The crop of the image used to generate the mask, in TFDS format."),
            "id": features.Scalar(dtype=np.uint64, doc="Identifier for the annotation."),
            "point_coords": features.Tensor(
                shape=(1, 2),
                dtype=np.float64,
                doc="The point coordinates input to the model to generate the mask.",
            ),
            "predicted_iou": features.Scalar(dtype=np.float64, doc="The model's own prediction of the mask's quality."),
            "segmentation": features.FeaturesDict(
                {"counts": np.str_, "size": features.Tensor(shape=(2,), dtype=np.uint64)},
                doc="Encoded segmentation mask in COCO RLE format (dict with keys `size` and `counts`).",
            ),
            "stability_score": features.Scalar(dtype=np.float64, doc="A measure of the mask's quality."),
        }
    )
    image = features.FeaturesDict(
        {
            "content": features.Image(doc="Content of the image."),
            "file_name": np.str_,
            "height": np.uint64,
            "image_id": np.uint64,
            "width": np.uint64,
        }
    )
    return features.FeaturesDict({"image": image, "annotations": features.Sequence(annotation)})


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to prepare, and how to shard it. An interrupted preparation can be resumed only with the same plan.

    Attributes:
        directory: output directory of the shards: OUT/segment_anything/1.0.0.
        tars: the released tars.
        images: number of images to use of each tar, from its first; None means all.
        shards: number of files to write. Shard k holds the images of tars [k/shards, (k+1)/shards) * len(tars), where
            half a tar means half of its images.
    """

    directory: str
    tars: tuple[str, ...]
    images: tuple[int | None, ...]
    shards: int

    def shard_path(self, shard: int) -> epath.Path:
        return epath.Path(self.directory) / f"{NAME}-train.array_record-{shard:05d}-of-{self.shards:05d}"

    @property
    def work(self) -> epath.Path:
        """Directory for the plan and the image ids of finished shards, removed when the preparation is done."""
        return epath.Path(self.directory) / "incomplete"

    def ids_path(self, shard: int) -> epath.Path:
        return self.work / f"{shard:05d}.npy"


def prepare_tars(
    tars: epath.PathLike,
    out: epath.PathLike,
    shards: int | None = None,
    limit: int | None = None,
    beam_options: Sequence[str] | None = None,
) -> str:
    """Writes OUT/segment_anything/1.0.0 and returns that path.

    Args:
        tars: a directory of tars, one tar, or a glob.
        out: tensorflow-datasets' data_dir; `tfds.load("segment_anything", data_dir=out)` finds the result.
        shards: number of files; None means one per tar, about 10 GB each.
        limit: use only this many images, the first ones; None means all.
        beam_options: pipeline options of Apache Beam, which then writes the shards; None writes them here, one by one.
            Workers need paths that they can all reach, and sam_jax with its extra `tfds` installed.

    Raises:
        DataError: a missing package, bad arguments, an unreadable tar, or a finished or another preparation in `out`.
    """
    import_tfds()
    plan = make_plan(tars, out, shards, limit)
    _begin(plan)
    if beam_options is not None:
        _run_beam(plan, beam_options)
    else:
        for shard in tqdm(range(plan.shards), desc="shards"):
            write_shard(plan, shard)
    _finish(plan)
    return plan.directory


def make_plan(tars: epath.PathLike, out: epath.PathLike, shards: int | None, limit: int | None) -> Plan:
    """Checks the arguments and finds the tars; with a limit, counts images up to it."""
    for name, value in (("shards", shards), ("limit", limit)):
        if value is not None and value < 1:
            raise DataError(f"--{name} must be at least 1, not {value}")
    paths = [os.fspath(path) for path in find_tars(tars)]
    images: list[int | None] = [None] * len(paths)
    if limit is not None:
        images = []
        for path in paths:
            images.append(min(limit, _count(path)))
            limit -= images[-1] or 0
            if not limit:
                break
    directory = epath.Path(out) / NAME / VERSION
    used = len(images)
    return Plan(os.fspath(directory), tuple(paths[:used]), tuple(images), shards or used)


def _begin(plan: Plan) -> None:
    """Writes the plan to the directory, or compares it with that of an interrupted preparation."""
    if (epath.Path(plan.directory) / "dataset_info.json").exists():
        raise DataError(f"{plan.directory}: is prepared already; delete it to prepare it again")
    path, text = plan.work / "plan.json", json.dumps(dataclasses.asdict(plan))
    if path.exists() and path.read_text() != text:
        raise DataError(
            f"{plan.directory}: begun with other tars, --shards or --limit; repeat those to go on, or delete it"
        )
    plan.work.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _run_beam(plan: Plan, options: Sequence[str]) -> None:
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise DataError(f'{error}: --beam needs the extra: pip install "sam_jax[tfds-beam]"') from None
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        shards = pipeline | "Shards" >> beam.Create(range(plan.shards)) | beam.Reshuffle()
        _ = shards | "WriteShard" >> beam.Map(functools.partial(write_shard, plan))


def write_shard(plan: Plan, shard: int) -> None:
    """Writes one shard and its image ids, unless they exist."""
    path = plan.shard_path(shard)
    if path.exists() and plan.ids_path(shard).exists():
        return
    from array_record.python import array_record_module

    # The writer's own file name: on this machine even if the shard goes to gs://, since a copy can be retried.
    # Unique, since Beam may run a slow job twice at once.
    local = "://" not in plan.directory
    with tempfile.TemporaryDirectory(dir=plan.work if local else None) as work:
        partial = epath.Path(work) / uuid.uuid4().hex
        features, ids = official_features(), []
        writer = array_record_module.ArrayRecordWriter(os.fspath(partial), "group_size:1")
        try:
            for image_id, example, name in _shard_examples(plan, shard):
                try:
                    writer.write(features.serialize_example(example))
                except (ValueError, TypeError, OverflowError) as error:
                    raise DataError(f"{name}: {one_line(error)}") from error
                ids.append(image_id)
        finally:
            writer.close()
        if not ids:
            raise DataError(f"{plan.directory}: nothing for shard {shard} of {plan.shards}: give fewer --shards")
        save_ids(plan.ids_path(shard), np.array(ids, np.int64))
        if local:
            partial.replace(path)
        else:
            partial.copy(path, overwrite=True)


def _finish(plan: Plan) -> None:
    """Writes the image ids and the metadata of the data set, and removes the working directory."""
    tfds = import_tfds()
    directory = epath.Path(plan.directory)
    ids = []
    for shard in range(plan.shards):
        with plan.ids_path(shard).open("rb") as file:
            ids.append(np.load(file))
    check_unique(directory, np.concatenate(ids))
    save_ids(directory / IDS_FILE, np.concatenate(ids))
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=NAME, split="train", filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[len(part) for part in ids],
        num_bytes=sum(plan.shard_path(shard).stat().length for shard in range(plan.shards)),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=official_features(),
        split_infos=[split],
        version=VERSION,
        filename_template=template,
        check_data=False,  # it would need TensorFlow
        description="SA-1B, prepared from the released tars by sam_jax.",
        homepage=_HOMEPAGE,
        license=f"Custom (see: {_HOMEPAGE})",
    )
    plan.work.rmtree()


def _shard_examples(plan: Plan, shard: int) -> Iterator[tuple[int, dict[str, Any], str]]:
    """(image id, example for `official_features`, name for messages) of all images of one shard."""
    tars = len(plan.tars)
    # In units of 1/shards of a tar, so that all are integers.
    begin, end = shard * tars, (shard + 1) * tars
    for number in range(begin // plan.shards, -(-end // plan.shards)):
        here = number * plan.shards
        span = max(begin - here, 0), min(end - here, plan.shards)
        yield from _tar_examples(plan.tars[number], plan.images[number], span, plan.shards)


def _tar_examples(
    path: str, images: int | None, span: tuple[int, int], parts: int
) -> Iterator[tuple[int, dict[str, Any], str]]:
    """The images from span[0] / parts to span[1] / parts of the first `images` of a tar."""
    with _reading(path):
        file = epath.Path(path).open("rb")
    with file:
        with _reading(path):
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (it holds nothing but `file`)
            pairs = _list_pairs(tar)[:images]
        first, last = (len(pairs) * edge // parts for edge in span)
        for jpg, annotations in pairs[first:last]:
            with _reading(path):
                image, text = _read(tar, jpg), _read(tar, annotations)
            name = f"{path}: {annotations.name}"
            yield *_example(name, image, text), name


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Reports errors as the tar's; only for reading, so that errors of the output are not blamed on the tar."""
    try:
        yield
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{path}: cannot be read as a tar: {one_line(error)}; is it complete?") from error


def _list_pairs(tar: tarfile.TarFile) -> list[tuple[tarfile.TarInfo, tarfile.TarInfo]]:
    """The jpg and the json of each image, in the order of the tar. Files without a partner are left out."""
    members = tar.getmembers()
    _check_end(tar, members)
    # macOS adds files with a leading dot.
    files = [member for member in members if member.isfile() and not _base(member).startswith(".")]
    by_name = {_base(member): member for member in files}
    names = [name.removesuffix(".jpg") for name in by_name if name.endswith(".jpg")]
    return [(by_name[f"{name}.jpg"], by_name[f"{name}.json"]) for name in names if f"{name}.json" in by_name]


def _check_end(tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> None:
    """Raises ReadError if the tar ends in a truncated or invalid header, which tarfile treats as the end."""
    block = tarfile.BLOCKSIZE
    if members and tar.fileobj:
        tar.fileobj.seek(members[-1].offset_data + -(-members[-1].size // block) * block)
        if tar.fileobj.read(block) not in (bytes(block), b""):
            raise tarfile.ReadError("no end after its last file")


def _base(member: tarfile.TarInfo) -> str:
    return member.name.rpartition("/")[2]


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _count(path: str) -> int:
    with _reading(path), epath.Path(path).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        return len(_list_pairs(tar))


def _example(name: str, image: bytes, text: bytes) -> tuple[int, dict[str, Any]]:
    """The image id and the example, as the official builder makes it from the same two files."""
    try:
        document = json.loads(text)
        info = document["image"]
        height, width = info["height"], info["width"]
        annotations = [
            {
                **{key: annotation[key] for key in _COPIED},
                "bbox": normalise_box(annotation["bbox"], height, width),
                "crop_box": normalise_box(annotation["crop_box"], height, width),
                "segmentation": {key: annotation["segmentation"][key] for key in ("counts", "size")},
            }
            for annotation in document["annotations"]
        ]
        fields = {key: info[key] for key in ("file_name", "height", "image_id", "width")}
        return int(info["image_id"]), {"image": {"content": image, **fields}, "annotations": annotations}
    except KeyError as error:
        raise DataError(f"{name}: not SA-1B's json: {error} is missing") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(f"{name}: not SA-1B's json: {one_line(error)}") from None


def normalise_box(box: Sequence[float], height: int, width: int) -> np.ndarray:
    """COCO's (x, y, w, h) in pixels to tensorflow-datasets' (ymin, xmin, ymax, xmax), float64 from 0 to 1."""
    x, y, w, h = box
    return np.array([y / height, x / width, (y + h) / height, (x + w) / width])
