"""The layering of the house, stated as tables and checked on the syntax trees. A new room is a new row, argued for."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("sam_jax/**/*.py", "convert/**/*.py", "configs/**/*.py", "train.py", "infer.py")
    for path in ROOT.glob(pattern)
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_SCRIPT_LINES = 100

_BASE = {"config", "structs", "ops", "ops/network", "models", "sharding", "checkpoint", "files", "rgb"}
_LIBRARY = _BASE | {
    "sam_jax",
    "runtime",
    "inference",
    "batch",
    "training",
    "training/loop",
    "training/batches",
    "data",
    "composites",
    "evaluation",
    "text",
    "engine",
}
# What networks are made of, and what that is made of on TPUs.
NETWORK_FILES = {
    "ops/attention",
    "ops/gelu",
    "ops/int8_mlp",
    "ops/kernel_choice",
    "ops/layer_norm",
    "ops/mask_decoder",
    "ops/planes",
    "ops/products",
    "ops/random_bits",
    "ops/softmax",
    "ops/sums",
}
KERNEL_FILES = {
    "ops/attention_tiles",
    "ops/attention_tpu",
    "ops/attention_tpu_backward",
    "ops/batch_partition",
    "ops/int8_mlp_tpu",
    "ops/mask_decoder_tpu",
}
# room: the rooms that it may import, besides itself.
ALLOWED = {
    "config": set(),
    "structs": set(),
    "ops/network": {"ops/kernels"},
    "ops/kernels": {"ops/network"},
    "ops": {"structs", "ops/network"},
    "models": {"config", "structs", "ops/network"},
    "sharding": set(),
    "estimates": set(),
    "checkpoint": {"config", "structs", "models", "files"},
    "runtime": set(),
    "files": set(),
    # Inference and the data must see the same pixels, and neither imports the other.
    "rgb": set(),
    "inference": _BASE,
    "batch": _BASE | {"inference"},
    "training": _BASE | {"estimates"},
    "training/loop": _BASE | {"training", "training/batches", "data", "evaluation"},
    "training/batches": {"config", "data", "composites", "training/fingerprint"},
    "training/fingerprint": {"data", "composites"},
    "data": {"config", "rgb", "data/tfds"},
    "data/tfds": {"data"},
    "composites": {"config", "rgb", "data"},
    # It reads what data/ reads, scores what inference/ predicts and draws with its pictures; its __main__ is a script.
    "evaluation": _BASE | {"inference", "data", "runtime"},
    "text": _BASE,
    "engine": _LIBRARY - {"engine"},
    "sam_jax": _LIBRARY - {"sam_jax"},
    "convert": _LIBRARY,
    "configs": {"sam_jax", "config"},
    "scripts": _LIBRARY,
}
# room: what it may import from outside the house and the standard library.
_ARRAYS = {"jax", "numpy", "einops"}
_HOST = {"numpy", "etils", "tqdm", "PIL", "pycocotools", "scipy"}
THIRD_PARTY = {
    "config": set(),
    "structs": {"jax", "flax"},
    "ops/network": _ARRAYS,
    "ops/kernels": {"jax", "numpy"},
    "ops": _ARRAYS | {"PIL", "pycocotools", "scipy"},
    "models": _ARRAYS | {"flax"},
    "sharding": {"jax", "numpy"},
    "estimates": {"jax", "numpy"},
    "checkpoint": {"jax", "numpy", "flax", "orbax", "etils"},
    "runtime": {"jax"},
    "files": {"etils"},
    "rgb": {"numpy", "PIL"},
    "inference": _ARRAYS | _HOST,
    "batch": _ARRAYS | _HOST,
    "training": _ARRAYS | {"flax", "optax", "etils", "tqdm", "PIL", "tensorboardX"},
    "training/loop": _ARRAYS | {"flax", "optax", "etils", "tqdm"},
    "training/batches": {"numpy", "grain"},
    "training/fingerprint": {"numpy"},
    "data": _HOST,
    "data/tfds": {"numpy", "etils", "tqdm", "tensorflow_datasets", "array_record", "apache_beam"},
    "composites": _HOST | {"cv2"},
    # Optional, imported only where they are used: floors that need no learning, and Hypersim's HDF5 labels.
    "evaluation": _ARRAYS | _HOST | {"cv2", "skimage", "h5py"},
    "text": _ARRAYS | {"flax"},
    "engine": _ARRAYS | _HOST,
    "sam_jax": set(),
    "convert": {"jax", "numpy", "flax", "etils", "torch", "safetensors"},
    "configs": set(),
    "scripts": {"jax", "numpy", "PIL", "tqdm", "tyro"},
}


def room_of(file):
    """The room that a file of the repository belongs to."""
    parts = file.removesuffix(".py").split("/")
    if parts[0] != "sam_jax":
        return parts[0] if len(parts) > 1 else "scripts"
    if parts[1] == "__init__":
        return "sam_jax"
    path = "/".join(parts[1:])
    for room, files in (("ops/network", NETWORK_FILES), ("ops/kernels", KERNEL_FILES)):
        if path in files:
            return room
    return next((room for room in (path, "/".join(parts[1:3])) if room in ALLOWED), parts[1])


def _module_file(module):
    """The file of a dotted module of the house, or None: packages give their __init__.py."""
    stem = module.replace(".", "/")
    return next((f for f in (f"{stem}.py", f"{stem}/__init__.py") if (ROOT / f).exists()), None)


def imported_modules(tree):
    """Dotted names of all modules that a file imports, wherever in it; `from a import b` gives a.b if that is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if _module_file(module) else node.module


def violations(file, source):
    """Imports of a file that the tables do not allow."""
    room = room_of(file)
    for module in imported_modules(ast.parse(source)):
        top = module.split(".")[0]
        if top in ("sam_jax", "convert", "configs", "train", "infer", "tests"):
            found = _module_file(module) or f"{module.replace('.', '/')}/__init__.py"
            other = room_of(found)
            if other != room and other not in ALLOWED[room]:
                yield f"{room} may not import {other}: {module}"
        elif top not in sys.stdlib_module_names and top not in THIRD_PARTY[room]:
            yield f"{room} may not import {top}"


def test_there_are_files():
    assert {"sam_jax/models/sam.py", "sam_jax/training/loop.py", "convert/rules.py", "train.py"} <= set(FILES)
    assert ALLOWED.keys() == THIRD_PARTY.keys()


@pytest.mark.parametrize("file", FILES)
def test_imports(file):
    assert list(violations(file, (ROOT / file).read_text())) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("sam_jax/config/model.py", "import numpy"),
        ("sam_jax/ops/masks.py", "from flax import linen"),
        ("sam_jax/ops/masks.py", "from sam_jax.config import SamConfig"),
        ("sam_jax/models/sam.py", "from sam_jax.ops import transforms"),
        ("sam_jax/models/sam.py", "def f():\n    import sam_jax.training.losses"),
        ("sam_jax/composites/scene.py", "import jax.numpy as jnp"),
        ("sam_jax/composites/scene.py", "import grain"),
        ("sam_jax/training/step.py", "from sam_jax.training.batches import make_batches"),
        ("sam_jax/training/losses.py", "from sam_jax.training import loop"),
        ("sam_jax/checkpoint.py", "from convert import rules"),
        ("train.py", "from convert.rules import OFFICIAL"),
    ],
)
def test_the_tables_forbid(file, source):
    assert list(violations(file, source))


def test_no_circles():
    """No file needs, through whatever others, itself: so that each can be read with what lies below it alone."""
    trees = {file: ast.parse((ROOT / file).read_text()) for file in FILES}
    needs = {file: {_module_file(module) for module in imported_modules(tree)} for file, tree in trees.items()}
    assert list(TopologicalSorter({file: needs[file] & needs.keys() for file in FILES}).static_order())


def test_tests_lie_like_the_rooms_that_they_test():
    rooms = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert [str(room) for room in rooms if not (ROOT / "sam_jax" / room).is_dir() and not (ROOT / room).is_dir()] == []


def test_files_and_functions_are_short():
    long = []
    for file in FILES:
        text = (ROOT / file).read_text()
        limit = MAX_SCRIPT_LINES if room_of(file) == "scripts" else MAX_FILE_LINES
        if (lines := len(text.splitlines())) > limit:
            long.append(f"{file}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES:
                long.append(f"{file}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert long == []


def test_no_junk_drawers():
    assert [file for file in FILES if Path(file).stem in ("utils", "util", "helpers", "misc", "common")] == []
    trees = {file: ast.parse((ROOT / file).read_text()) for file in FILES}
    classes = [node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert [name for name in classes if name.endswith(("Manager", "Helper"))] == []


def test_the_package_only_re_exports():
    body = ast.parse((ROOT / "sam_jax/__init__.py").read_text()).body
    for node in body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        name = isinstance(node, ast.Assign) and node.targets[0].id
        assert docstring or isinstance(node, ast.ImportFrom) or name in ("__all__", "__version__"), ast.unparse(node)
