"""The layering of the house, stated as tables and checked on the syntax trees. A new room is a new row, argued for."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sam_jax

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("sam_jax/**/*.py", "convert/**/*.py", "configs/**/*.py", "train.py", "infer.py")
    for path in ROOT.glob(pattern)
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_DOOR_LINES = 20

_BASE = {"former_names", "config", "structs", "ops", "ops/network", "models", "sharding", "checkpoint", "files", "rgb"}
_LIBRARY = _BASE | {
    "sam_jax",
    "runtime",
    "inference",
    "plotting",
    "batch",
    "training",
    "training/loop",
    "training/batches",
    "training/text_prompts",
    "data",
    "composites",
    "evaluation",
    "text",
    "serving",
    "zero_shot",
    "engine",
    "video",
}
# What networks are made of, and what that is made of on TPUs and GPUs.
NETWORK_FILES = {
    "ops/attention",
    "ops/block_dense",
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
    "ops/attention_gpu",
    "ops/attention_gpu_backward",
    "ops/attention_tiles",
    "ops/attention_tpu",
    "ops/attention_tpu_backward",
    "ops/batch_partition",
    "ops/block_dense_tpu",
    "ops/mask_bits_tpu",
    "ops/mask_decoder_tpu",
    "ops/mask_decoder_tpu_backward",
}
# room: the rooms that it may import, besides itself.
ALLOWED = {
    "config": set(),
    "structs": set(),
    "former_names": set(),
    "ops/network": {"ops/kernels"},
    "ops/kernels": {"ops/network"},
    "ops": {"structs", "ops/network", "ops/kernels"},
    "models": {"config", "structs", "ops/network"},
    "sharding": set(),
    "estimates": set(),
    "checkpoint": {"config", "structs", "models", "files"},
    "runtime": set(),
    "files": set(),
    # Inference and the data must see the same pixels, and neither imports the other.
    "rgb": set(),
    "inference": _BASE,
    "batch": _BASE | {"inference", "text"},
    "plotting": {"inference", "ops"},
    "training": _BASE | {"estimates"},
    "training/loop": _BASE | {"training", "training/batches", "training/text_prompts", "data", "evaluation"},
    "training/text_prompts": _BASE | {"training", "data", "text"},
    "training/batches": {"config", "data", "composites", "training/fingerprint"},
    "training/fingerprint": {"data", "composites"},
    "data": {"config", "rgb", "data/tfds"},
    "data/tfds": {"data"},
    "composites": {"config", "rgb", "data"},
    # It reads what data/ reads, scores what inference/ predicts and draws with its overlays.
    "evaluation": _BASE | {"inference", "data", "runtime", "text"},
    # It takes candidates from everything mode and masks from the predictor.
    "text": _BASE | {"inference"},
    "serving": _BASE | {"sam_jax", "inference", "text"},
    # The paper's tasks: runs of batch/, scored and shown as evaluation/ does.
    "zero_shot": _BASE | {"inference", "batch", "data", "evaluation"},
    # It walks through frames with the image predictor.
    "video": _BASE | {"inference", "batch", "evaluation"},
    "engine": _LIBRARY - {"engine"},
    "sam_jax": _LIBRARY - {"sam_jax"},
    "convert": _BASE | {"sam_jax", "text"},
    "cli": _LIBRARY | {"convert", "data/tfds"},
    "configs": {"sam_jax", "config"},
    # `python infer.py`, `python -m sam_jax.zero_shot` and the like
    "doors": {"cli"},
}
# room: what it may import from outside the house and the standard library.
_ARRAYS = {"jax", "numpy", "einops"}
_HOST = {"numpy", "etils", "tqdm", "PIL", "pycocotools", "scipy"}
THIRD_PARTY = {
    "config": set(),
    "structs": {"jax", "flax"},
    "former_names": set(),
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
    # Ray is optional, imported where a cluster is asked for.
    "batch": _ARRAYS | _HOST | {"ray", "cloudpickle"},
    "plotting": {"numpy", "PIL", "matplotlib"},
    "training": _ARRAYS | {"flax", "optax", "etils", "tqdm", "PIL", "tensorboardX"},
    "training/loop": _ARRAYS | {"flax", "optax", "etils", "tqdm"},
    "training/text_prompts": {"jax", "numpy", "etils", "tqdm", "PIL"},
    "training/batches": {"numpy", "grain"},
    "training/fingerprint": {"numpy"},
    "data": _HOST,
    "data/tfds": {"numpy", "etils", "tqdm", "tensorflow_datasets", "array_record", "apache_beam"},
    # OpenCV and trimesh are optional, imported where a pool's images are labelled and its models drawn.
    "composites": _HOST | {"cv2", "trimesh"},
    # Optional, imported only where they are used: floors that need no learning, and Hypersim's HDF5 labels.
    "evaluation": _ARRAYS | _HOST | {"cv2", "skimage", "h5py"},
    "text": _ARRAYS | _HOST | {"flax", "tokenizers", "instant_clip_tokenizer"},
    "serving": _ARRAYS
    | {"PIL", "etils", "fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client", "threadpoolctl"},
    # Optional: another floor, and the measures of COCO and LVIS.
    "zero_shot": _ARRAYS | _HOST | {"skimage", "faster_coco_eval"},
    # PyAV is optional, imported where a video file is read or written.
    "video": _ARRAYS | _HOST | {"av"},
    "engine": _ARRAYS | _HOST | {"fastapi", "pydantic"},
    "sam_jax": set(),
    "convert": {"jax", "numpy", "flax", "etils", "torch", "safetensors", "jax2onnx", "onnx", "onnxruntime"},
    "cli": {"jax", "numpy", "tyro"},
    "configs": set(),
    "doors": set(),
}


def room_of(file):
    """The room that a file of the repository belongs to."""
    parts = file.removesuffix(".py").split("/")
    if parts[0] != "sam_jax":
        return "configs" if parts[0] == "configs" else "doors"
    if parts[1] == "__init__":
        return "sam_jax"
    if parts[-1] == "__main__":
        return "doors"
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
    assert {"sam_jax/models/sam.py", "sam_jax/training/loop.py", "sam_jax/convert/rules.py", "train.py"} <= set(FILES)
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
        ("sam_jax/checkpoint.py", "from sam_jax.convert import rules"),
        ("sam_jax/training/loop.py", "from sam_jax.convert.rules import OFFICIAL"),
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
        limit = MAX_DOOR_LINES if room_of(file) == "doors" else MAX_FILE_LINES
        if (lines := len(text.splitlines())) > limit:
            long.append(f"{file}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES:
                long.append(f"{file}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert long == []


def test_files_of_tests_are_short():
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert len(files) > 100
    assert [str(file) for file in files if len(file.read_text().splitlines()) > MAX_FILE_LINES] == []


def test_no_junk_drawers():
    assert [file for file in FILES if Path(file).stem in ("utils", "util", "helpers", "misc", "common")] == []
    trees = {file: ast.parse((ROOT / file).read_text()) for file in FILES}
    classes = [node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert [name for name in classes if name.endswith(("Manager", "Helper"))] == []


def test_the_package_only_re_exports():
    """Names that are loaded when first asked for, and the same for type checkers: no logic of its own."""
    body = ast.parse((ROOT / "sam_jax/__init__.py").read_text()).body
    for node in body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for_checkers = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        lazy = isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "__dir__")
        imports = isinstance(node, ast.Import | ast.ImportFrom)
        assert docstring or for_checkers or lazy or imports or isinstance(node, ast.Assign), ast.unparse(node)


def test_lazy_names_are_those_that_checkers_see():
    (checked,) = (
        node for node in ast.parse((ROOT / "sam_jax/__init__.py").read_text()).body if isinstance(node, ast.If)
    )
    seen = {alias.name: node.module for node in checked.body for alias in node.names}
    assert seen.keys() == set(sam_jax.__all__)
    assert {name: f"sam_jax.{module}" for name, module in sam_jax._MODULE_OF.items()} == seen
