"""The images of a run: expands files, directories, patterns and lists into one ordered list without duplicates."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from sam_jax.files import absolute

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pnm", ".jp2", ".avif")
)
_PATTERN = re.compile(r"[*?\[]")
# Results that a run with --format png,overlay leaves beside the images if it writes into their directory.
_OUR_IMAGE = re.compile(r"(.+)\.(?:overlay|mask_\d+)")


@dataclass(frozen=True)
class ImageFile:
    """An image, and the name of its results.

    Attributes:
      path: of the image, local or gs://.
      file_name: its path below the common directory of all images of the run: "sub/cat.jpg".
      name: path of its results below the output directory, without a suffix: "sub/cat". Images that differ only in
        their suffix keep it: "sub/cat.jpg" and "sub/cat.png".
      image_id: for COCO files.
    """

    path: str
    file_name: str
    name: str
    image_id: int

    @classmethod
    def single(cls, path: epath.PathLike, image_id: int = 1) -> ImageFile:
        """The `ImageFile` of a single image."""
        file = PurePosixPath(os.fspath(path))
        return cls(os.fspath(path), file.name, file.stem, image_id)


class ImageList(Sequence[ImageFile]):
    """Images of a run, in order. Keeps only their paths, so that millions fit into memory.

    `image_id` is the number at the end of the file name (000000000139.jpg, sa_223750.jpg) if every name ends in a
    different one; otherwise it is the position in the list, from 1.
    """

    def __init__(self, paths: Sequence[str], root: str) -> None:
        self._paths, self._root = paths, root
        self._numbers = range(len(paths))
        stems = Counter(_stem(self._file_name(path)) for path in paths)
        self._ambiguous = {stem for stem, count in stems.items() if count > 1}
        ids = {_final_number(stem) for stem in stems}
        self._has_ids = None not in ids and len(ids) == len(paths)

    def share(self, host: int, hosts: int) -> ImageList:
        """The images of one host: every `hosts`-th, starting with number `host`. Each image belongs to one host."""
        part = ImageList.__new__(ImageList)
        part.__dict__.update(self.__dict__, _numbers=self._numbers[host::hosts])
        return part

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = self._numbers[index]
        path = self._paths[number]
        file_name = self._file_name(path)
        stem = _stem(file_name)
        image_id = _final_number(stem) if self._has_ids else None
        return ImageFile(
            path,
            file_name,
            name=file_name if stem in self._ambiguous else stem,
            image_id=number + 1 if image_id is None else image_id,
        )

    def _file_name(self, path: str) -> str:
        return absolute(path)[len(self._root) :].lstrip("/").replace("://", "/")


def find_images(inputs: Sequence[str], exclude: epath.PathLike | None = None) -> ImageList:
    """Finds the images of some inputs.

    Args:
      inputs: any of
        - a file with any suffix;
        - a directory, local or gs://: all images in it and below it, recognised by their suffix. Hidden files and
          directories (names that start with a dot) and links to directories are skipped;
        - a pattern such as images/2024-*/*.jpg: files that match, but only images if it ends in *. In local patterns
          `**` matches any depth of directories. (Like directories, patterns skip cat.overlay.jpg and cat.mask_0.png if
          there is a cat.jpg);
        - @list.txt: a text file with one of the above per line; empty lines and lines that start with # are ignored.
      exclude: the output directory: images below it are skipped.

    Returns:
      Images in the order of the inputs, sorted within each. Names of results are relative to the deepest directory
      that contains all inputs.

    Raises:
      ValueError: an input does not exist, or there is no image at all.
    """
    files: dict[str, str] = {}  # absolute -> as given: no duplicates, however paths are written
    explicit: set[str] = set()
    roots: set[str] = set()
    for source, listed in _sources(inputs):
        root, found = _expand(source, listed, None if exclude is None else absolute(exclude))
        roots.add(absolute(root))
        if len(found) == 1 and found[0] == source:
            explicit.add(absolute(source))
        for path in found:
            files.setdefault(absolute(path), path)
    stems = {_stem(key) for key in files}
    for key in list(files):
        ours = _OUR_IMAGE.fullmatch(_stem(key))
        if ours and ours[1] in stems and key not in explicit:
            del files[key]
    if not files:
        raise ValueError(f"no images in {', '.join(inputs)}; looked for {' '.join(sorted(SUFFIXES))}")
    return ImageList(list(files.values()), _common_directory(roots))


def _stem(file_name: str) -> str:
    directory, slash, name = file_name.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return directory + slash + (stem if dot and stem else name)


def _final_number(stem: str) -> int | None:
    digits = re.search(r"\d+$", stem)
    return int(digits[0]) if digits else None


def _common_directory(roots: set[str]) -> str:
    first, *others = ([*root.split("/")] for root in roots)
    for parts in others:
        first = [
            one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, parts, strict=False))
        ]
    return "/".join(first)


def _sources(inputs: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Inputs with @lists expanded, and whether each comes from a list."""
    for source in inputs:
        if not source.startswith("@"):
            yield source, False
            continue
        file = epath.Path(source[1:])
        if not file.exists() or file.is_dir():
            raise ValueError(f"{source}: {file} is not a file; expected a text file with one image per line")
        try:
            lines = file.read_text().splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{source}: {file} is not a text file; expected one image per line") from error
        for line in lines:
            if line.strip() and not line.startswith("#"):
                yield line.strip(), True


def _expand(source: str, listed: bool, exclude: str | None) -> tuple[str, list[str]]:
    """The root directory of an input, and its files, sorted."""
    if listed and not _PATTERN.search(source) and PurePosixPath(source).suffix.lower() in SUFFIXES:
        return _parent(source), [source]  # without a disk access for each of a million lines
    path = epath.Path(source)
    if path.is_dir():
        return source, sorted(_walk(source, exclude))
    if path.exists() or (listed and not _PATTERN.search(source)):
        return _parent(source), [source]
    if not _PATTERN.search(source):
        raise ValueError(
            f"{source} does not exist; expected an image, a directory, a pattern such as 'dir/*.jpg' or @LIST"
        )
    found = sorted(_match(source, exclude))
    if not found:
        raise ValueError(f"{source} matches no file")
    return _parent(source[: _PATTERN.search(source).start()] + "x"), found  # type: ignore[union-attr]


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _walk(directory: str, exclude: str | None) -> Iterator[str]:
    def complain(error: OSError) -> None:
        raise ValueError(f"{directory}: a directory in it cannot be read ({error})") from error

    local = "://" not in directory
    walk: Any = os.walk(directory, onerror=complain) if local else epath.Path(directory).walk()
    for root, directories, names in walk:
        base = os.fspath(root)
        if not local and "://" not in base:  # some file systems omit the scheme
            base = f"{directory.partition('://')[0]}://{base.lstrip('/')}"
        directories[:] = [
            name for name in directories if not name.startswith(".") and absolute(os.path.join(base, name)) != exclude
        ]
        yield from (os.path.join(base, name) for name in names if _is_image(name))


def _match(pattern: str, exclude: str | None) -> Iterator[str]:
    """Files that match, as paths with the same beginning as the pattern."""
    fixed = _parent(pattern[: _PATTERN.search(pattern).start()] + "x")  # type: ignore[union-attr]
    inside = None if exclude is None or absolute(fixed) == exclude else exclude + "/"
    if "://" not in pattern:
        found: Any = glob.iglob(pattern, recursive=True)
    elif "**" in pattern:
        raise ValueError(f"{pattern}: ** works for local paths only; give the directory to search all below it")
    else:
        found = map(os.fspath, epath.Path(fixed).glob(pattern[len(fixed) :].lstrip("/")))
    for path in found:
        wanted = _is_image(os.path.basename(path)) if pattern.endswith("*") else not epath.Path(path).is_dir()
        if wanted and not (inside and absolute(path).startswith(inside)):
            yield path
