"""The benchmarks for GPUs, where there is none: a tiny model beside torch, and what is said without a compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from benchmarks import gpu_aot

ROOT = Path(__file__).parents[1]
# Everything but torch.compile, which takes minutes here, and the interpreted kernels.
SIDES = ("ours", "official", "huggingface")


def commands(script):
    """Arguments of a script's lines in the performance page."""
    start = f"python benchmarks/{script} "
    lines = (ROOT / "docs" / "performance.md").read_text().splitlines()
    return [line.split(start)[1].split("#")[0].split() for line in lines if start in line]


def test_without_a_compiler_for_gpus_it_is_one_line_and_status_2(monkeypatch, capsys):
    def missing(*_, **__):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(gpu_aot.topologies, "get_topology_desc", missing)
    monkeypatch.setattr("sys.argv", ["gpu_aot.py", "encoder"])
    assert gpu_aot.main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ['JAX has no compiler for GPUs here: pip install "jax[cuda13]" (no GPU is needed)']


def test_commands_of_the_performance_page_are_understood():
    (command,) = commands("gpu_aot.py")
    args = tyro.cli(gpu_aot.Options, args=command)
    found = [(chip, program.name, dtype) for chip, program, dtype in gpu_aot.chosen(args)]
    assert [(chip, dtype) for chip, _, dtype in found] == [("h100", "bfloat16")] * 2
    assert [name.split(", ")[0] for _, name, _ in found] == ["encoder B", "encoder B"]
    assert ["attention auto" in found[0][1], "attention triton" in found[1][1]] == [True, True]


@pytest.mark.oracle
@pytest.mark.slow
def test_a_tiny_model_beside_torch(tmp_path):
    """The same weights on every side: errors in float32 are rounding, and every row has a time."""
    options = ["--tiny", "--repetitions", "2", "--sides", *SIDES, "--prompts", "5", "--batches", "2"]
    command = [sys.executable, "benchmarks/gpu_vs_torch.py", *options, "--json", str(tmp_path / "rows.json")]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    kinds = {(row["what"].split()[1].strip(","), row["side"], row["dtype"]) for row in rows}
    for dtype in ("float32", "bfloat16"):
        both = {(kind, side, dtype) for kind in ("encode", "decode") for side in SIDES}
        assert kinds >= both | {("training", side, dtype) for side in ("ours", "official")}
    assert {("everything", "ours", "bfloat16"), ("everything", "official", "float32")} <= kinds
    assert all(row["ms"] > 0 and row["what"] in done.stdout for row in rows)
    errors = {(row["what"].split()[1], row["side"], row["dtype"]): row.get("max error") for row in rows}
    for side in ("ours", "huggingface"):
        assert errors["encode,", side, "float32"] < 1e-5 < errors["encode,", side, "bfloat16"]
        assert errors["decode,", side, "float32"] < 0.01


@pytest.mark.oracle
def test_a_row_that_fails_says_why_and_the_next_one_runs():
    from benchmarks.gpu_vs_torch import Candidate, format_row, measure

    def missing():
        raise RuntimeError("no compiler | here\nand a long story")

    row = measure(Candidate("tiny encode, 1 images", "compiled", "float32", missing), 1, "cpu")
    assert (
        format_row(row) == "| tiny encode, 1 images | compiled | float32 | failed: RuntimeError: no compiler / here |"
    )
    assert measure(Candidate("x", "ours", "float32", lambda: lambda: 1), 2, "cpu").keys() >= {"ms", "per s"}
