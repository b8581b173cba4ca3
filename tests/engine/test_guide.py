"""What docs/engine.md says can be run, runs, in its order."""

import json
import shlex

import numpy as np

from sam_jax.cli import main
from sam_jax.engine.store import Store
from tests.engine.stores import draft
from tests.guides import ROOT, blocks, commands

BEFORE = 3  # commands, then somebody labels, then the others


def run(line):
    program, *words = shlex.split(line)
    assert (program, main.main(words)) == ("sam-jax", 0)


def test_the_guide(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    lines = commands("engine.md")
    for line in lines[:BEFORE]:
        run(line)
    assert "0 of 3 tasks done" in capsys.readouterr().out
    with Store("my_store") as store:
        image = next(store.images(held_out=False))
        task = store.claim_next("ada", image_id=image.id)
        store.save_mask(task.id, "ada", draft(np.ones(image.size, bool)), 0)
    (block,) = blocks("engine.md")
    exec(compile(block, "docs", "exec"), {})
    assert f"{image.file_name} {image.size} [{image.height * image.width}]" in capsys.readouterr().out
    for line in lines[BEFORE:]:
        run(line)
    assert len(json.loads((tmp_path / "out/masks.json").read_text())["annotations"]) == 1
    assert len(list((tmp_path / "out/sa1b").iterdir())) == 1
    assert "brushlabels" in (tmp_path / "out/tasks.json").read_text()
