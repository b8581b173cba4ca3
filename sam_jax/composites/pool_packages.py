"""Sources of the images of a cut-out pool: public packages, hand-picked lists, licences of each file."""

import dataclasses
import fnmatch
import json
import pathlib
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator

MANIFESTS = pathlib.Path(__file__).parent / "manifests"
STAMPS = "usr/share/tuxpaint/stamps"
FURNITURE = "usr/share/sweethome3d/furniture"
SHIPS = "usr/share/games/endless-sky/images/ship"
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SKIN_TONES_AND_FLAGS = re.compile(r"1f3f[b-f]|1f1e[6-9a-f]|1f1f[0-9a-f]|e00[67]|1f3f4|1f3f3|1f38c|1f6a9|1f3c1")


@dataclasses.dataclass(frozen=True)
class Found:
    """An image found in a package or a folder.

    Attributes:
        file: its present path.
        kind: photo_cutout, rendered_cutout, background, labelled or model.
        source: path inside its package or folder.
        package: name of the package or folder.
        version: of the package; empty for a folder.
        licence: short name, as the package's copyright file gives it for this path.
    """

    file: pathlib.Path
    kind: str
    source: str
    package: str
    version: str
    licence: str

    @property
    def key(self) -> str:
        """What the train/val split hashes: independent of machine and package version."""
        return f"{self.package}/{self.source}"

    def provenance(self) -> dict[str, str]:
        """Every field but the file's path, for pool.json."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "file"}


def _manifest(name: str) -> list[list[str]]:
    """Rows of a hand-picked list, without comments and column names."""
    lines = (MANIFESTS / name).read_text().splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [row for row in rows if row[0] not in ("path", "package")]


def _stamps(root: pathlib.Path) -> Iterator[tuple[str, str]]:
    for row in _manifest("tuxpaint_photo_stamps.tsv"):
        yield "photo_cutout", f"{STAMPS}/{row[0]}"


def _furniture(root: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Unpacks the catalogue icons of each furniture library, not the textures in the same zip."""
    for library in sorted((root / FURNITURE).glob("*.sh3f")):
        with zipfile.ZipFile(library) as archive:
            for icon in sorted(set(_listed(archive, "icon").values()) & set(archive.namelist())):
                archive.extract(icon, root / library.stem)
                yield "rendered_cutout", f"{library.stem}/{icon}"


def _listed(archive: zipfile.ZipFile, name: str) -> dict[str, str]:
    """A property of a furniture library's entries, by the number of the entry."""
    catalogue = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
    found = re.findall(rf"^{name}#(\d+)\s*=\s*(.+)$", catalogue, re.MULTILINE)
    return {number: value.strip("/ \r") for number, value in found}


@dataclasses.dataclass(frozen=True)
class FoundModel:
    """A 3-D model: where it was found, the rotation (9 numbers, row by row) it asks for, and its icon's `Found.key`."""

    found: Found
    rotation: tuple[float, ...] | None
    icon_key: str


def find_models(packages: str | pathlib.Path | None, work: pathlib.Path) -> Iterator[FoundModel]:
    """Every model of the package of furniture, unpacked in `work`; the package comes from `packages`, or is fetched."""
    root = work / "unpacked"
    version = _unpack(MODELS, _fetch(MODELS, packages, work), root)
    licences = read_licences(root / f"usr/share/doc/{MODELS.name}/copyright")
    for library in sorted((root / FURNITURE).glob("*.sh3f")):
        with zipfile.ZipFile(library) as archive:
            archive.extractall(root / library.stem)
            models, icons, rotations = (_listed(archive, name) for name in ("model", "icon", "modelRotation"))
        for number, model in models.items():
            file = root / library.stem / model
            if file.suffix.lower() != ".obj" or not file.is_file():
                continue
            source = f"{library.stem}/{model}"
            licence = licence_of(source, licences, MODELS.licence)
            rotation = tuple(map(float, rotations[number].split())) if number in rotations else None
            icon_key = f"{MODELS.name}/{library.stem}/{icons.get(number, model)}"
            yield FoundModel(Found(file, "model", source, MODELS.name, version, licence), rotation, icon_key)


def _endless_sky(root: pathlib.Path) -> Iterator[tuple[str, str]]:
    for row in _manifest("endless_sky_photos.tsv"):
        yield "background", row[0]
    for ship in sorted((root / SHIPS).glob("*.png")):
        yield "rendered_cutout", f"{SHIPS}/{ship.name}"


def _wallpapers(package: str) -> Callable[[pathlib.Path], Iterator[tuple[str, str]]]:
    def find(root: pathlib.Path) -> Iterator[tuple[str, str]]:
        for row in _manifest("photo_wallpapers.tsv"):
            if row[0] == package:
                yield "background", row[1]

    return find


def _emoji(root: pathlib.Path) -> Iterator[tuple[str, str]]:
    for file in sorted((root / "package/assets").glob("*.webp")):
        if not SKIN_TONES_AND_FLAGS.search(file.stem):
            yield "rendered_cutout", f"package/assets/{file.name}"


@dataclasses.dataclass(frozen=True)
class Package:
    """A public package: its name, a function that finds its images, and the licence of files without their own."""

    name: str
    find: Callable[[pathlib.Path], Iterator[tuple[str, str]]]
    licence: str

    @property
    def is_npm(self) -> bool:
        """Whether it is an npm package (scoped name) rather than a Debian one."""
        return self.name.startswith("@")

    @property
    def pattern(self) -> str:
        """Glob pattern of the downloaded file's name."""
        return self.name[1:].replace("/", "-") + "-*.tgz" if self.is_npm else f"{self.name}_*.deb"


MODELS = Package("sweethome3d-furniture", _furniture, "CC-BY-3.0")
PACKAGES = (
    Package("tuxpaint-stamps-default", _stamps, "GPL-2"),
    MODELS,
    Package("@lobehub/fluent-emoji-3d", _emoji, "MIT"),
    Package("endless-sky-data", _endless_sky, "CC-BY-SA-4.0"),
    Package("lomiri-wallpapers-16.04", _wallpapers("lomiri-wallpapers-16.04"), "CC-BY-SA-3.0"),
    Package("mate-backgrounds", _wallpapers("mate-backgrounds"), "GPL-2+"),
    Package("plasma-workspace-wallpapers", _wallpapers("plasma-workspace-wallpapers"), "GPL-2+"),
    Package("gnome-backgrounds", _wallpapers("gnome-backgrounds"), "GPL-2+"),
)


def check_inputs(
    packages: str | pathlib.Path | None, specs: tuple[str, ...], wanted: tuple[Package, ...] = PACKAGES
) -> None:
    """Raises FileNotFoundError that names all missing files of `wanted` packages, tools and folders."""
    missing = [f"folder {spec}" for spec in specs if not pathlib.Path(_split_spec(spec)[0]).is_dir()]
    if packages is None:
        tools = sorted({"npm" if package.is_npm else "apt-get" for package in wanted})
        missing += [f"program {tool}" for tool in tools if not shutil.which(tool)]
    else:
        root = pathlib.Path(packages)
        missing += [f"{p.pattern} in {root}" for p in wanted if not list(root.glob(p.pattern))]
    if not shutil.which("dpkg-deb"):
        missing.append("program dpkg-deb")
    if missing:
        raise FileNotFoundError("cannot build a pool; missing: " + ", ".join(missing))


def _fetch(package: Package, packages: str | pathlib.Path | None, work: pathlib.Path) -> pathlib.Path:
    """The package's file, from `packages` or downloaded by the machine's package tools."""
    folder = pathlib.Path(packages) if packages else work
    if packages is None:
        command = ["npm", "pack"] if package.is_npm else ["apt-get", "download"]
        done = subprocess.run([*command, package.name], check=False, cwd=work, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} {package.name} failed: {done.stderr.strip()}")
    return max(folder.glob(package.pattern))


def _unpack(package: Package, file: pathlib.Path, root: pathlib.Path) -> str:
    """Unpacks a package to `root` and returns its version."""
    root.mkdir()
    if package.is_npm:
        with tarfile.open(file) as archive:
            archive.extractall(root, filter="data")
        return json.loads((root / "package/package.json").read_text())["version"]
    subprocess.run(["dpkg-deb", "-x", file, root], check=True)
    field = subprocess.run(["dpkg-deb", "-f", file, "Version"], check=True, capture_output=True, text=True)
    return field.stdout.strip()


def read_licences(copyright_file: pathlib.Path) -> list[tuple[str, str]]:
    """(path pattern, licence) pairs of a machine-readable Debian copyright file; [] if there is none."""
    if not copyright_file.is_file():
        return []
    pairs = []
    for paragraph in re.split(r"\n\s*\n", copyright_file.read_text(errors="replace")):
        files = re.search(r"^Files:((?:.*\n)(?:[ \t]+.*\n)*)", paragraph + "\n", re.MULTILINE)
        licence = re.search(r"^License:[ \t]*(\S.*)$", paragraph, re.MULTILINE)
        if files and licence:
            pairs += [(pattern, licence[1].strip()) for pattern in files[1].split()]
    return pairs


def licence_of(source: str, pairs: list[tuple[str, str]], default: str) -> str:
    """The licence of the last pattern that matches, as in Debian's format.

    A copyright file names paths of the source tree, which the package installs in a deeper directory or flattens. So
    the end of the path is matched first, then the file name, then the package as a whole.
    """
    name = pathlib.PurePosixPath(source).name
    tiers = [
        [licence for pattern, licence in pairs if pattern != "*" and fnmatch.fnmatch(f"/{source}", f"*/{pattern}")],
        [licence for pattern, licence in pairs if pathlib.PurePosixPath(pattern).name == name],
        [licence for pattern, licence in pairs if pattern == "*"],
        [default],
    ]
    return next(tier for tier in tiers if tier)[-1]


def find_in_packages(packages: str | pathlib.Path | None, work: pathlib.Path) -> Iterator[Found]:
    """Every image of PACKAGES, package by package: unpacked files are removed before the next package."""
    for package in PACKAGES:
        root = work / "unpacked"
        version = _unpack(package, _fetch(package, packages, work), root)
        licences = read_licences(root / f"usr/share/doc/{package.name}/copyright")
        for kind, source in package.find(root):
            licence = licence_of(source, licences, package.licence)
            yield Found(root / source, kind, source, package.name, version, licence)
        shutil.rmtree(root)


def _split_spec(spec: str) -> tuple[str, str]:
    folder, _, licence = spec.partition("=")
    return folder, licence or "unstated"


def find_in_folder(spec: str, kind: str) -> Iterator[Found]:
    """Every image of a folder given as DIR or DIR=LICENCE."""
    folder, licence = _split_spec(spec)
    root = pathlib.Path(folder)
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() in PHOTO_SUFFIXES:
            yield Found(file, kind, str(file.relative_to(root)), root.resolve().name, "", licence)
