"""What docs/training.md says can be typed, can: each command's options are parsed by the program that they are for."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sam_jax.cli import train

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "training.md").read_text()


def commands():
    """Each `python train.py ...` and `sam-jax ...` of the bash blocks, as words of `sam-jax`."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)).replace("\\\n", " ")
    text = text.replace("python train.py", "sam-jax train").replace("python infer.py", "sam-jax infer")
    found = [re.sub(r"\s+#.*", "", command) for command in re.findall(r"sam-jax ([^\"\n;]*)", text)]
    return [shlex.split(command) for command in found]


def is_about(program):
    return [words for words in commands() if words[0] == program]


@pytest.fixture
def parsed(monkeypatch):
    """What train.py understands of a command line, without doing it."""
    monkeypatch.chdir(ROOT)
    done = []
    monkeypatch.setattr(train, "run", lambda command, program: done.append(command) or 0)

    def parse(words):
        assert train.main(words[1:]) == 0
        return done[-1]

    return parse


@pytest.mark.parametrize("words", is_about("train"), ids=" ".join)
def test_training_commands_are_understood(words, parsed):
    command = parsed(words)
    place = "pool" if "--data.pool" in words else "path"
    assert getattr(command.config.data, place) == words[words.index(f"--data.{place}") + 1]
    if "--minutes" in words:
        assert command.config.minutes == float(words[words.index("--minutes") + 1])
    assert command.distributed == ("--distributed" in words)


# What stands in running text, with the config that it is said of.
SAID = [
    "configs/sa1b_vit_b.py --init-from None",
    "configs/sa1b_vit_b.py --accumulate 4",
    "configs/sa1b_vit_b.py --coordinator HOST0:1234 --num-hosts 4 --host 1",
    "configs/sa1b_vit_h.py --mesh.fsdp 8",
    "configs/finetune_coco.py --data.image-dir images",
    "configs/sa1b_vit_b.py --data.jitter 0.1 2.0 --data.max-images 100000 --data.hold-out 0.01",
    "configs/sa1b_vit_b.py --data.max-bad-share 0.1 --eval-every 10 --overlay-every 10 --data.num-workers 8",
    "configs/sa1b_vit_b.py --data.scaled-decode",
    "configs/bundled.py --data.reuse 12 --data.buffer-gib 4 --data.num-workers 14",
    "configs/bundled.py --data.composite.model-object 0.2",
    "configs/bundled.py --sam.dtype float32 --stages.0.batch-size 8 --stages.1.batch-size 4",
    "configs/sa1b_vit_b.py --profile-steps 20 25",
    "configs/sa1b_vit_b.py --eval-only",
    "configs/finetune_coco.py --finetune.lora-rank 0",
    'configs/finetune_coco.py --finetune.frozen "image_encoder/blocks_[0-5]/.*" "prompt_encoder/.*"',
    "configs/sa1b_vit_h.py --dry-run --topology v5e:16x16",
]


@pytest.mark.parametrize("text", SAID)
def test_options_in_running_text_are_understood(text, parsed):
    parsed(["train", *shlex.split(text)])


def test_no_option_of_training_is_left_out_here():
    tried = " ".join([*SAID, *(" ".join(words) for words in commands())])
    of_others = {
        "--help",
        "--zone",
        "--worker",
        "--command",
        "--logdir",
        "--checkpoint",
        "--crf",
        "--point",
        "--dtype",
        "--pool",
    }
    spelt = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]+", GUIDE)) - of_others
    assert spelt <= set(re.findall(r"--[a-z][a-z0-9.-]+", tried))


def test_fields_that_are_named_exist():
    fields = re.findall(r"`(augment|data|finetune|interaction|loss)\.(\w+)", GUIDE)
    assert fields
    for room, name in fields:
        name_of_config = {"finetune": "finetune_coco"}.get(room, "sa1b_vit_b")
        config = train.load_config(name_of_config)
        assert hasattr(getattr(config, room), name), name


@pytest.mark.oracle
@pytest.mark.parametrize("words", is_about("convert") + is_about("data"), ids=" ".join)
def test_converters_and_tools_understand_their_words(words, tmp_path):
    """Their files do not exist here, which is what they say, and not that they cannot read the command line."""
    (tmp_path / "data").touch()  # no directory: what would fetch a pool into it ends at once
    done = subprocess.run(
        [sys.executable, "-m", "sam_jax", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "usage" not in done.stderr
    assert next(word for word in words[2:] if "/" in word or "." in word) in done.stderr
