"""`import sam_jax` is light: it loads no other framework and costs little beyond JAX and Flax."""

import importlib
import subprocess
import sys

import pytest

from sam_jax.batch import image_list, stream

FOREIGN = (
    "torch",
    "tensorflow",
    "tensorflow_datasets",
    "onnx",
    "jax2onnx",
    "onnxruntime",
    "fastapi",
    "uvicorn",
    "matplotlib",
)
MAX_EXTRA_SECONDS = 2.0
ATTEMPTS = 3


def _fresh(code):
    """Runs code in a new interpreter; returns what it printed."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _cpu_seconds(modules):
    """CPU time of an import, which a busy machine does not stretch as it stretches the clock."""
    return float(
        _fresh(f"import time; start = time.process_time(); import {modules}; print(time.process_time() - start)")
    )


def test_import_loads_no_other_framework():
    loaded = _fresh(f"import sys, sam_jax; print(*(name for name in {FOREIGN!r} if name in sys.modules))")
    assert loaded == ""
    assert _fresh("import sam_jax; print(sam_jax.__file__)").endswith("__init__.py")


def test_import_is_fast():
    library, base = [], []
    for _ in range(ATTEMPTS):
        library.append(_cpu_seconds("sam_jax"))
        base.append(_cpu_seconds("jax, flax"))
        if min(library) - min(base) < MAX_EXTRA_SECONDS:
            return
    raise AssertionError(f"import sam_jax takes {min(library):.1f} s, import jax, flax {min(base):.1f} s")


@pytest.mark.parametrize(
    ("module", "name", "now"),
    [
        ("batch", "segment_photos", stream.segment_images),
        ("batch", "PhotoResult", stream.ImageResult),
        ("photo_list", "find_photos", image_list.find_images),
    ],
)
def test_former_names_still_work_and_say_the_new_ones(module, name, now):
    module = importlib.import_module(f"sam_jax.inference.{module}")
    with pytest.warns(FutureWarning, match=rf"{now.__module__}\.{now.__name__} now"):
        assert getattr(module, name) is now
    with pytest.raises(AttributeError, match="no attribute 'segment_pictures'"):
        _ = module.segment_pictures
