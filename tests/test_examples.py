"""The notebooks run from top to bottom, are small, and hold what they printed."""

import os
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MAX_BYTES = 150_000
# What a notebook needs beyond the `examples` extra is the marker of its test.
# Two minutes of training are slow.
SLOW = dict.fromkeys(("everything_mode", "fine_tuning"), pytest.mark.slow)
NEEDS = {"official_weights": pytest.mark.oracle, "tpu_pod": pytest.mark.libtpu} | SLOW


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def test_they_are_there():
    names = {path.stem for path in NOTEBOOKS}
    assert names == {"predictor", "everything_mode", "fine_tuning", "official_weights", "tpu_pod"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_small_and_with_outputs(path):
    assert path.stat().st_size <= MAX_BYTES
    nbformat.validate(nbformat.read(path, as_version=4))
    outputs = [output for cell in cells(path, "code") for output in cell.outputs]
    assert len(outputs) >= 4
    assert [output for output in outputs if output.output_type == "error"] == []
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    counts = [cell.execution_count for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))  # in one go, from the top
    assert str(Path.home()) not in path.read_text()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of the notebooks where they may write, and `sam-jax` of this checkout on the path."""
    for name in ("docs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "examples").mkdir()
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "sam-jax"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sam_jax "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("XLA_FLAGS")  # devices of these tests' own
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # of others: Jupyter and its sockets
@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=NEEDS.get(p.stem, pytest.mark.long)) for p in NOTEBOOKS]
)
def test_it_runs(path, checkout):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    place = {"metadata": {"path": str(checkout / "examples")}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    printed = sum(len(cell.get("outputs", [])) for cell in notebook.cells)
    assert printed >= 4
