"""What docs/inference.md says can be run, runs: each Python block, and each command of the script."""

import re
import shlex

import pytest

from sam_jax.cli import infer
from tests.guides import ROOT, blocks, commands, enter_like_the_root

PAGE = "inference.md"
GUIDE = (ROOT / "docs" / PAGE).read_text()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A directory that looks like the repository's root, where things may be written."""
    enter_like_the_root(tmp_path, monkeypatch)
    (prompts,) = blocks(PAGE, "json")
    (tmp_path / "prompts.json").write_text(prompts)
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("block", blocks(PAGE))
def test_python_blocks_run(block, capsys):
    exec(compile(block, "inference.md", "exec"), {})
    assert "Error" not in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize("command", commands(PAGE))
def test_commands_run(command, here, capsys):
    words = shlex.split(command)
    assert words[:2] == ["sam-jax", "infer"]
    assert infer.main(words[2:]) == 0, capsys.readouterr().out
    out = here / (words[words.index("--out") + 1] if "--out" in words else "sam_out")
    names = {path.name for path in out.iterdir()}
    assert any(name.endswith(".json") for name in names)
    assert ("coco_results.json" in names) == ("coco" in command)


def test_every_option_that_is_named_exists(capsys):
    with pytest.raises(SystemExit):
        infer.main(["--help"])
    known = set(re.findall(r"--[a-z][a-z0-9-]+", capsys.readouterr().out))
    commands_of_others = {"--zone", "--worker", "--command", "--help", "--head", "--port", "--address", "--resources"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", GUIDE)) - commands_of_others <= known
