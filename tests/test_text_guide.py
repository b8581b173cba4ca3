"""What docs/text.md says can be run, runs: each Python block and command, with towers that know colours."""

import json
import re
import shlex

import pytest

from sam_jax.cli import infer, main
from tests.guides import ROOT, blocks, commands, enter_like_the_root
from tests.tiny_towers import save_colour_towers

PAGE = "text.md"
GUIDE = (ROOT / "docs" / PAGE).read_text()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A directory that looks like the repository's root, with a text model, where things may be written."""
    enter_like_the_root(tmp_path, monkeypatch)
    (tmp_path / "checkpoints").mkdir()
    save_colour_towers(tmp_path / "checkpoints" / "clip_vit_b_32")
    (prompts,) = blocks(PAGE, "json")
    (tmp_path / "phrases.json").write_text(prompts)
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("block", blocks(PAGE))
def test_python_blocks_run(block):
    exec(compile(block, "text.md", "exec"), {})


FIRST, *OTHERS = commands(PAGE)


@pytest.mark.parametrize(
    "command", [pytest.param(FIRST, marks=pytest.mark.long), *(pytest.param(x, marks=pytest.mark.slow) for x in OTHERS)]
)
def test_commands_run(command, here, capsys):
    words = shlex.split(command)
    assert words[:2] == ["sam-jax", "infer"]
    assert infer.main(words[2:]) == 0, capsys.readouterr().err
    out = here / (words[words.index("--out") + 1] if "--out" in words else "sam_out")
    records = [record for file in out.glob("*.json") for record in json.loads(file.read_text())["annotations"]]
    assert {record["text"] for record in records} <= set(re.findall(r'"([^"]+)"', GUIDE))


@pytest.mark.parametrize("command", ["infer", "evaluate", "train text_to_mask"])
def test_every_option_that_is_named_exists(command, capsys):
    with pytest.raises(SystemExit):
        main.main([*command.split(), "--help"])
    known = set(re.findall(r"--[a-z][a-z0-9.-]+", capsys.readouterr().out))
    lines = re.findall(rf"sam-jax {command} (?:[^\n]|\n  --)*", GUIDE)
    named = {option for line in lines for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]+", line)}
    assert len(named) >= 2
    assert named <= known
