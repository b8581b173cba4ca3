"""The result files of a run over many images, from which an interrupted run continues.

OUT/sub/cat.json          records in SA-1B's format; always written, and written last: if it exists, so do the others
OUT/sub/cat.mask_0.png    one mask, 255 on the object (format png)
OUT/sub/cat.overlay.jpg   the image with all masks (format overlay)
OUT/coco_results.json     all records of all images as COCO results (format coco)
OUT/failures.jsonl        the images that failed, and why
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from sam_jax.batch.image_list import ImageFile
from sam_jax.batch.prompt_files import ImageObjects
from sam_jax.files import write_atomically
from sam_jax.inference.exports import to_coco
from sam_jax.inference.overlays import label_masks, labels_of, overlay_masks, write_image
from sam_jax.ops.rle import decode_mask

Record = dict[str, Any]
FORMATS = ("json", "png", "overlay", "coco")
COCO_FILE = "coco_results.json"
_PROGRAM = "sam_jax"
_HEAD_BYTES = 4096
_TAIL = b"]}"
# Errors that would also occur with the next image.
_LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


class OutputError(OSError):
    """Results cannot be written at all; the message says what to do."""


class ResultFiles:
    """The output directory of a run. Several threads may call its methods, each for different images."""

    def __init__(
        self, out: epath.PathLike, formats: Sequence[str], settings: dict[str, Any], listing: bool = True
    ) -> None:
        """Creates the directory.

        Args:
          formats: some of `FORMATS`; "json" is always included.
          settings: everything that results depend on, as JSON values. Results with other settings do not count as done.
          listing: a directory is listed once, at the start; False looks for each file anew, since others may write it.

        Raises:
          ValueError: a format is unknown.
          OutputError: the directory cannot be created.
        """
        if unknown := [name for name in formats if name not in FORMATS]:
            raise ValueError(
                f"unknown format {unknown[0]!r}; expected some of {', '.join(FORMATS)}, separated by commas"
            )
        self.out = epath.Path(out)
        self.formats = sorted({"json", *formats} - {"coco"})
        self._settings, self._lists = settings, listing
        self._names: dict[str, set[str]] = {}
        self._lock = threading.Lock()
        with lasting_errors():
            self.out.mkdir(parents=True, exist_ok=True)

    def is_finished(self, image_file: ImageFile, objects: ImageObjects | None = None) -> bool:
        """Whether an image's results exist, are complete, and have these settings, formats and prompts.

        Raises:
          ValueError: another program's file is in the place of the JSON.
        """
        path = self._path(image_file, "json")
        if not self._was_there(path):
            return False
        head, tail = _ends(path)
        info = _info(head)
        if info is None and head.strip():
            raise ValueError(f"{path} exists and was not written by this program; choose another output directory")
        return (
            info is not None
            and tail == _TAIL
            and info["settings"] == self._fingerprint(image_file, objects)
            and set(self.formats) <= set(info["formats"])
        )

    def write(
        self,
        image_file: ImageFile,
        objects: ImageObjects | None,
        size: tuple[int, int],
        records: Sequence[Record],
        image: np.ndarray,
    ) -> None:
        """Writes all results of an image.

        Args:
          size: (H, W).
          records: `segmentation` is a compressed COCO RLE.
          image: (H, W, 3) uint8.

        Raises:
          OutputError: results can no longer be written, for instance because the disk is full.
        """
        path = self._path(image_file, "json")
        with lasting_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_earlier(image_file)
            if "png" in self.formats:
                for index, record in enumerate(records):
                    mask = decode_mask(record["segmentation"])
                    write_image(self._path(image_file, f"mask_{index}.png"), mask.astype(np.uint8) * 255)
            if "overlay" in self.formats:
                drawn = label_masks(overlay_masks(image, _Masks(records)), _Masks(records), labels_of(records))
                write_image(self._path(image_file, "overlay.jpg"), drawn)
            content = {
                "info": {
                    "program": _PROGRAM,
                    "settings": self._fingerprint(image_file, objects),
                    "formats": self.formats,
                },
                "image": {
                    "image_id": _image_id(image_file, objects),
                    "width": size[1],
                    "height": size[0],
                    "file_name": image_file.file_name,
                },
                "annotations": [{"id": index, **record} for index, record in enumerate(records)],
            }
            write_atomically(path, json.dumps(content).encode())

    def read(self, image_file: ImageFile) -> dict[str, Any] | None:
        """The content of an image's JSON; None if there is none that this program wrote."""
        path = self._path(image_file, "json")
        if not path.exists():
            return None
        text = path.read_bytes()
        return json.loads(text) if _info(text[:_HEAD_BYTES]) is not None and text.endswith(_TAIL) else None

    def write_coco(self, images: Iterable[ImageFile], image_ids: Any = None) -> epath.Path:
        """Joins the JSONs of all images into one COCO results file, and returns its path.

        For the fields see `inference.exports.to_coco`; `score` and `category_id` of the prompt are kept.

        Args:
          image_ids: image -> its id; None means `ImageFile.image_id`.
        """
        path = self.out / COCO_FILE
        unfinished = self.out / f".{COCO_FILE}.unfinished"
        with lasting_errors():
            try:
                with unfinished.open("w") as file:
                    file.write("[")
                    for number, result in enumerate(self._coco_results(images, image_ids)):
                        file.write((",\n" if number else "\n") + json.dumps(result))
                    file.write("\n]\n")
                unfinished.replace(path)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
        return path

    def write_failures(self, failures: Sequence[tuple[ImageFile, str]], name: str) -> epath.Path:
        """Writes failed images, one {"image": ..., "error": ...} per line; without any, removes the file."""
        path = self.out / name
        with lasting_errors():
            if not failures:
                path.unlink(missing_ok=True)
            else:
                lines = [
                    json.dumps({"image": image_file.path, "error": error}) + "\n" for image_file, error in failures
                ]
                write_atomically(path, "".join(lines).encode())
        return path

    def _coco_results(self, images: Iterable[ImageFile], image_ids: Any) -> Iterator[dict[str, Any]]:
        for image_file in images:
            content = self.read(image_file)
            image_id = image_file.image_id if image_ids is None else image_ids(image_file)
            for entry in to_coco(content["annotations"] if content else (), image_id):
                yield entry | {"file_name": image_file.file_name}

    def _path(self, image_file: ImageFile, suffix: str) -> epath.Path:
        return self.out / f"{image_file.name}.{suffix}"

    def _was_there(self, path: epath.Path) -> bool:
        return path.name in self._listing(path.parent) if self._lists else bool(path.exists())

    def _listing(self, directory: epath.Path) -> set[str]:
        """JSON names in a directory at the start: one request for all its images, which saves time on gs://."""
        key = os.fspath(directory)
        with self._lock:
            if key not in self._names:
                found = directory.iterdir() if directory.exists() else ()
                self._names[key] = {path.name for path in found if path.name.endswith(".json")}
            return self._names[key]

    def _fingerprint(self, image_file: ImageFile, objects: ImageObjects | None) -> str:
        # Without a text, as before there were any: results of earlier versions stay finished.
        prompts = (
            None
            if objects is None
            else [
                {name: value for name, value in vars(prompt).items() if (name, value) != ("text", None)}
                for prompt in objects.objects
            ]
        )
        text = json.dumps([self._settings, image_file.file_name, prompts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _remove_earlier(self, image_file: ImageFile) -> None:
        """Removes results of an earlier run, its JSON first, so that it never describes missing files."""
        path = self._path(image_file, "json")
        was_there = self._was_there(path)
        if was_there:
            path.unlink(missing_ok=True)
            self._path(image_file, "overlay.jpg").unlink(missing_ok=True)
        if was_there or "png" in self.formats:
            count = 0
            while (file := self._path(image_file, f"mask_{count}.png")).exists():
                count += 1
            (file.parent / f".{file.name}.unfinished").unlink(missing_ok=True)
            for index in reversed(range(count)):  # from the end, so that remaining files always count from 0
                self._path(image_file, f"mask_{index}.png").unlink(missing_ok=True)


@contextlib.contextmanager
def lasting_errors() -> Iterator[None]:
    """Turns errors that would affect every image into an OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _LASTING or isinstance(error, OutputError):
            raise
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make the directory writable"
        raise OutputError(
            f"results cannot be written ({error}); {remedy} and run the same command again: "
            "it continues with the unfinished images"
        ) from error


class _Masks(Sequence[np.ndarray]):
    """Masks of records, each decoded on access: all together may not fit into memory."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        return decode_mask(self._records[index]["segmentation"])


def _image_id(image_file: ImageFile, objects: ImageObjects | None) -> int:
    return image_file.image_id if objects is None or objects.image_id is None else objects.image_id


def _ends(path: epath.Path) -> tuple[bytes, bytes]:
    """The first and last bytes of a file."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - len(_TAIL)))
        return head, file.read()


def _info(head: bytes) -> dict[str, Any] | None:
    """The `info` at the beginning of each of our JSONs; None for any other file."""
    text = head.decode(errors="replace")
    start = '{"info": '
    if not text.startswith(start):
        return None
    try:
        info, _ = json.JSONDecoder().raw_decode(text, len(start))
    except ValueError:
        return None
    return info if isinstance(info, dict) and info.get("program") == _PROGRAM else None
