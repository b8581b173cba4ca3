"""Finds the images of a COCO file: beside it, in `images/` or in sub-folders, even by paths of another machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from etils import epath

from sam_jax.data.coco_files import CocoImage
from sam_jax.data.records import DataError

Way = tuple[str, int]  # "whole" name, "without" its first n parts, or the last n parts of the "url"
Tree = dict[str, list[tuple[epath.Path, list[str]]]]  # lower-case base name: paths, and their parts below a root


class CocoPlaces:
    """Paths of the images of a file. Can be pickled.

    The interpretation of names that finds the first image is used for all. If none does, or another image is missing,
    sub-folders are searched for files whose paths end as the image's name does, in any case. On gs://, where checking
    each would take minutes, only the first image is checked.

    Attributes:
        paths: one per image; images not found keep the paths of their names, and fail when read.
    """

    def __init__(
        self, path: epath.Path, images: Sequence[CocoImage], image_dirs: Sequence[epath.PathLike] = ()
    ) -> None:
        """Finds the images.

        Args:
            path: the COCO file.
            images: the result of `coco_files.read_coco`.
            image_dirs: directories that names are relative to. If empty, `images` beside the file, the file's directory
                and its parent, and absolute names are tried as they are, too.

        Raises:
            DataError: no image is found, a name matches several files, or two names match the same file.
        """
        self._path, self._images, self._is_given = path, images, bool(image_dirs)
        near = image_dirs or (path.parent / "images", path.parent, path.parent.parent)
        self._folders = [epath.Path(folder) for folder in near]
        paths = self._as_named()
        if not paths or not _are_there(paths):
            paths = self._search(paths)
        self._check_distinct(paths)
        self.paths = [str(place) for place in paths]  # as text they take a tenth of the memory

    def read(self, index: int) -> bytes:
        """The encoded image `index`. Raises DataError."""
        try:
            return epath.Path(self.paths[index]).read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{self.paths[index]}: cannot be read: {reason}; is it where the file says?") from None

    def _as_named(self) -> list[epath.Path]:
        """Paths of all images by the first way that finds the first image; empty if none does."""
        for way in self._ways(self._images[0]):
            for folder in self._folders:
                if (folder / _name(self._images[0], way)).exists():
                    return [folder / _name(image, way) for image in self._images]
        return []

    def _ways(self, image: CocoImage) -> Iterator[Way]:
        """How to derive the file's path below a directory from the image's names, most likely first."""
        if image.file_name:
            if image.file_name.startswith("/") and not self._is_given:
                yield "whole", 0
            yield "without", 0
        if image.url:
            yield from (("url", 2), ("url", 1))
        yield from (("without", count) for count in range(1, len(_parts(image.file_name or ""))))

    def _search(self, named: Sequence[epath.Path]) -> list[epath.Path]:
        """Paths of all images, searched for in sub-folders; those not found keep the paths of their names."""
        # Not the file's parent directory: folders of labels beside `images` may hold the same names.
        trees = [_tree(root) for root in (self._folders if self._is_given else self._folders[:2])]
        found, is_any = (
            list(named or (self._folders[0] / _name(image, ("without", 0)) for image in self._images)),
            False,
        )
        for number, image in enumerate(self._images):
            hits = next(filter(None, (_hits(image, tree) for tree in trees)), [])
            if len(hits) > 1:
                raise DataError(
                    f"{self._path}: image {image.name!r} may be {hits[0]} or {hits[1]}; give file_name with its folder"
                )
            if hits:
                found[number], is_any = hits[0], True
        if not is_any and not named:
            places = ", ".join(map(str, self._folders))
            raise DataError(
                f"{self._path}: its image {self._images[0].name} is not below any of {places}; say where the images "
                "are (--data.image-dir to train, --images to evaluate)"
            )
        return found

    def _check_distinct(self, paths: Sequence[epath.Path]) -> None:
        owners: dict[epath.Path, CocoImage] = {}
        for path, image in zip(paths, self._images, strict=True):
            if (other := owners.setdefault(path, image)) is not image:
                raise DataError(
                    f"{self._path}: images {other.name!r} and {image.name!r} are both {path}; put each where its name "
                    "says, or join them into one"
                )


def _are_there(paths: Sequence[epath.Path]) -> bool:
    """Whether all files exist, by listing each directory; on gs:// it is assumed."""
    wanted: dict[epath.Path, set[str]] = {}
    for path in paths:
        wanted.setdefault(path.parent, set()).add(path.name)
    return all(
        "://" in str(folder) or (folder.is_dir() and names <= {entry.name for entry in folder.iterdir()})
        for folder, names in wanted.items()
    )


def _tree(root: epath.Path) -> Tree:
    """All files in a directory and below."""
    files: Tree = {}
    for folder, _, names in root.walk():
        above = [] if folder == root else list(folder.relative_to(root).parts)
        for name in names:
            files.setdefault(name.lower(), []).append((folder / name, [*above, name]))
    return files


def _hits(image: CocoImage, files: Tree) -> list[epath.Path]:
    """The files whose paths share the most trailing parts with the image's name."""
    best: list[tuple[tuple[int, bool], epath.Path]] = []
    for wanted in [_parts(name) for name in (image.file_name, image.url) if name]:
        for path, parts in files.get(wanted[-1].lower(), ()):
            pairs = list(zip(reversed(parts), reversed(wanted), strict=False))
            same = next((n for n, (one, other) in enumerate(pairs) if one.lower() != other.lower()), len(pairs))
            # "train/1.jpg" is not "val/1.jpg".
            if same > 1 or same in (len(parts), len(wanted)):
                in_case = parts[-same:] == wanted[-same:]
                best.append(((same + (parts == wanted), in_case), path))
    top = max((score for score, _ in best), default=None)
    return list(dict.fromkeys(path for score, path in best if score == top))


def _parts(name: str) -> list[str]:
    """The parts of a path or URL, without drive or scheme."""
    return [part for part in re.sub(r"^\w+:", "", name).split("/") if part]


def _name(image: CocoImage, way: Way) -> str:
    """The image's file name by a way, which may be that of another image with other names."""
    kind, count = way
    if image.file_name and kind == "whole":
        return image.file_name
    if image.url and (kind == "url" or not image.file_name):
        return "/".join(_parts(image.url)[-(count or 2) :])
    parts = _parts(str(image.file_name))
    return "/".join(parts[min(count, len(parts) - 1) :] if kind == "without" else parts)
