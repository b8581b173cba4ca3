"""Budgets for what the TPU compiler says about the library's programs."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks import tpu_aot, tpu_run
from sam_jax.estimates import tpu as tpu_estimates

ROOT = Path(__file__).parents[1]
BUDGETS = tomllib.loads((ROOT / "benchmarks" / "budgets.toml").read_text())


@pytest.mark.libtpu
@pytest.mark.parametrize("command", BUDGETS)
def test_programs_keep_their_budgets(command):
    rows = {row["program"]: row for row in tpu_aot.compile_rows(tpu_aot.parse(command.split()))}
    assert rows.keys() == BUDGETS[command].keys()
    for name, limits in BUDGETS[command].items():
        for figure, limit in limits.items():
            assert rows[name][figure] <= limit, f"{name}: {figure} is {rows[name][figure]:.3f}, budget {limit}"
            # A budget far above what there is guards nothing.
            assert rows[name][figure] >= 0.5 * limit, f"{name}: {figure} is {rows[name][figure]:.3f}, lower {limit}"


def test_an_unknown_topology_is_one_line_and_status_2():
    command = [sys.executable, "benchmarks/tpu_aot.py", "encoder", "--topology", "v9:1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "topology 'v9:1' is not known; expected one of v5e, v5p, v6e and a grid: v5e:4x4"
    ]


def test_useful_work_of_the_published_sizes():
    """ViT-B, L and H: 0.94, 2.8 and 5.6 TFLOP per image, mostly dense layers and global attention."""
    for name, tera in (("b", 0.94), ("l", 2.84), ("h", 5.64)):
        assert tpu_aot.encoder_flops(tpu_aot.SIZES[name]()) / 1e12 == pytest.approx(tera, rel=0.01)


def test_commands_of_the_performance_page_are_understood():
    lines = (ROOT / "docs" / "performance.md").read_text().splitlines()
    commands = [line.split()[2:] for line in lines if line.startswith("    python benchmarks/tpu_aot.py ")]
    assert len(commands) >= 4
    for command in commands:
        assert tpu_aot.parse(command).program


@pytest.mark.long
def test_the_same_programs_run_on_the_device_at_hand(tmp_path):
    """Here a CPU: measured, and no estimate."""
    options = ["--prompts", "1", "--dtype", "float32", "--repetitions", "2", "--json", tmp_path / "rows.json"]
    command = [sys.executable, "benchmarks/tpu_run.py", "decoder", *map(str, options)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["program"] == "decoder B, 1 x 1 prompts"
    assert 0 < row["fastest_ms"] <= row["ms"]
    assert row["useful_tflops"] > 0
    assert row["estimated_ms"] is None
    assert f"| {row['program']} | cpu | " in done.stdout


def test_every_chip_has_a_name_on_hardware():
    assert set(tpu_run.KINDS.values()) == set(tpu_estimates.CHIPS)
