"""What the README says can be run, runs: each Python block, and the Quick start's script line."""

import re
import shlex
from pathlib import Path

import pytest

import infer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def section(title):
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("title", ["Quick start", "Tests"])
def test_a_section_holds_one_command_line(title):
    blocks = re.findall(r"```bash\n(.*?)```", section(title), re.DOTALL)
    assert len(blocks) == 1
    assert len(blocks[0].strip().splitlines()) == 1


@pytest.mark.long
@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks_run(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(block, "README.md", "exec"), {})


def test_the_quick_start_writes_what_it_says(monkeypatch, tmp_path):
    line = re.findall(r"```bash\n(.*?)```", section("Quick start"), re.DOTALL)[0]
    command = shlex.split(line.split("&&")[1])
    image = str(ROOT / command[2])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["infer.py", image, *command[3:]])
    assert infer.main() == 0
    written = {file.name for file in (tmp_path / "sam_out").iterdir()}
    assert written == {"dog.overlay.jpg", "dog.masks.json", "dog.mask_0.png", "dog.mask_1.png", "dog.mask_2.png"}
