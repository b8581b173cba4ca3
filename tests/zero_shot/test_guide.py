"""What docs/zero_shot.md says can be run."""

import re
import shlex

import pytest

from sam_jax.cli import main, parsing
from sam_jax.cli.zero_shot import TASKS
from tests.guides import ROOT, commands

PAGE = "zero_shot.md"
GUIDE = (ROOT / "docs" / PAGE).read_text()
COMMANDS = commands(PAGE)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    program, group, task, *words = shlex.split(line)
    assert (program, group) == ("sam-jax", "zero-shot")
    assert parsing.parse(TASKS[task][0], line, words).images


def test_each_task_is_there():
    assert {shlex.split(line)[2] for line in COMMANDS} == set(TASKS)


def test_every_option_exists(capsys):
    for task in TASKS:
        with pytest.raises(SystemExit):
            main.main(["zero-shot", task, "--help"])
    known = capsys.readouterr().out
    for option in re.findall(r"`(--[a-z-]+)", GUIDE):
        assert option in known
