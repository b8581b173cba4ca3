"""The wheel, installed beside nothing of the checkout: every command works in another directory."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from sam_jax.cli import train
from tests.tiny_sa1b import write_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, ROOT],
        check=True,
        capture_output=True,
    )
    (found,) = out.glob("sam_jax-*.whl")
    return found


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """`sam-jax` of an environment that has the wheel, and what it depends on from the one that runs the tests."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / "bin" / "python"
    target = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--prefix", home, wheel],
        check=True,
        capture_output=True,
    )
    # A plain entry of sys.path: the other environment's own .pth files, an editable install among them, do not count.
    (target / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert python.exists()

    def run(*arguments, cwd):
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
        return subprocess.run(
            [python, home / "bin" / "sam-jax", *map(str, arguments)],
            cwd=cwd,
            env=environment | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.long
def test_the_wheel_holds_what_users_need_and_no_more(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"sam_jax/configs/{name}.py" for name in train.recipes()} <= set(names)
    assert "sam_jax/weights/vit_tiny/config.json" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"sam_jax"}
    assert wheel.stat().st_size < 20e6


@pytest.mark.long
def test_all_places_name_one_version():
    import sam_jax

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert project["version"] == sam_jax.__version__
    assert f"version: {sam_jax.__version__}\n" in citation


@pytest.mark.long
def test_commands_run_elsewhere(command, tmp_path):
    shutil.copy(ROOT / "docs/images/dog.jpg", tmp_path)
    done = command("--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    done = command("infer", "dog.jpg", "--point", "275,149", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sam_out/dog.overlay.jpg").exists()
    write_folder(tmp_path / "mine", 4)
    done = command("data", "stats", "mine", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/stats.json").read_text())["images"] == 4
    done = command("evaluate", "mine", "--clicks", "1", "--no-boxes", "--limit", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report/report.html").exists()


@pytest.mark.slow
def test_recipes_are_found_by_name(command, tmp_path):
    write_folder(tmp_path / "mine", 4)
    small = ("--stages.0.num-steps", "1", "--stages.0.image-size", "128", "--stages.0.batch-size", "1")
    options = ("--data.path", "mine", "--data.hold-out", "0.5", "--data.num-workers", "0", "--workdir", "run")
    done = command("train", "finetune_tiny", *small, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "model written to" in done.stdout
    done = command(
        "infer",
        next((tmp_path / "mine").glob("*.jpg")),
        "--box",
        "5,5,40,40",
        "--checkpoint",
        "run/model",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_converters_are_there(command, tmp_path):
    done = command("convert", "from-torch", "none.pth", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "none.pth does not exist" in done.stderr
