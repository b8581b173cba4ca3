"""What docs/evaluation.md says can be run."""

import re
import shlex
from pathlib import Path

import pytest

from sam_jax.cli import main, parsing
from sam_jax.cli.evaluate import Evaluate
from sam_jax.evaluation.sets.paper_sets import PAPER_SETS

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/evaluation.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("sam-jax evaluate")
]


@pytest.mark.long
@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL))
def test_python_blocks_run(block, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(compile(block, "docs/evaluation.md", "exec"), {})
    first = capsys.readouterr().out.splitlines()[0]
    assert all(0 <= float(number) <= 1 for number in first.split())


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    command = parsing.parse(Evaluate, "sam-jax evaluate", shlex.split(line)[2:])
    assert all(text.split("=")[0] in PAPER_SETS for text in command.set)


def test_every_option_of_the_guide_exists(capsys):
    with pytest.raises(SystemExit):
        main.main(["evaluate", "--help"])
    known = capsys.readouterr().out
    for option in re.findall(r"`(--[a-z-]+)", GUIDE):
        assert option in known


def test_the_guide_says_what_the_command_says():
    assert len(COMMANDS) == 3
