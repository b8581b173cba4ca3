"""Every option of every command says what it does."""

import argparse
import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

import pytest

import train

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("infer.py", "sam_jax/**/*.py", "convert/**/*.py", "benchmarks/**/*.py")
    for path in ROOT.glob(pattern)
    if 'if __name__ == "__main__"' in path.read_text()
)


class Caught(BaseException):
    """A parser that was about to read the command line."""


def parser_of(file, monkeypatch):
    """The parser that a script makes when it is run; nothing is parsed."""

    def catch(parser, *_, **__):
        raise Caught(parser)

    monkeypatch.setattr(sys, "argv", [file])
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, catch)
    with pytest.raises(Caught) as caught:
        runpy.run_path(str(ROOT / file), run_name="__main__")
    return caught.value.args[0]


def options_of(parser):
    """Pairs of an option's name and its help, sub-commands and theirs included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from ((choice.dest, choice.help) for choice in action._choices_actions)
            for name, inner in action.choices.items():
                yield from ((f"{name} {option}", text) for option, text in options_of(inner))
        else:
            yield "/".join(action.option_strings) or action.dest, action.help


def without_help(options):
    return [name for name, text in options if not re.sub(r"\(default: .*\)", "", text or "", flags=re.S).strip()]


def test_the_commands_are_found():
    parsers = ("ArgumentParser(", "make_parser(", "parse_arguments(")
    assert {"infer.py", "sam_jax/evaluation/__main__.py", "sam_jax/data/sa1b/__main__.py"} <= set(COMMANDS)
    assert [file for file in COMMANDS if not any(word in (ROOT / file).read_text() for word in parsers)] == []


NEEDS_TORCH = [file for file in COMMANDS if "torch" in file or file.startswith("convert/")]


@pytest.mark.parametrize(
    "file", [pytest.param(file, marks=[pytest.mark.oracle] * (file in NEEDS_TORCH)) for file in COMMANDS]
)
def test_every_option_of_a_command_has_help(file, monkeypatch):
    options = list(options_of(parser_of(file, monkeypatch)))
    assert options
    assert without_help(options) == []


def training_options(config_file, monkeypatch):
    """Pairs of an option's name and its help, as `python train.py CONFIG --help` prints them."""
    monkeypatch.setattr(sys, "argv", ["train.py", str(ROOT / config_file), "--help"])
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        train.main()
    text = "\n".join(line.strip(" │|") for line in out.getvalue().splitlines())
    for entry in re.split(r"^(?=--)(?!-+$)", text, flags=re.M)[1:]:
        name, _, below = entry.partition("\n")
        # Of a group's last option the next group's heading follows.
        yield re.split("[, ]", name)[0], re.split(r"^.*\boptions\b[ ─╮]*$", below, flags=re.M)[0]


@pytest.mark.parametrize("config_file", ["configs/finetune_coco.py", "configs/bundled.py"])
def test_every_option_of_training_has_help(config_file, monkeypatch):
    options = dict(training_options(config_file, monkeypatch))
    assert len(options) > 100
    expected = {
        "--coordinator",
        "--eval-images",
        "--loss.focal-gamma",
        "--optim.learning-rate",
        "--stages.0.batch-size",
    }
    assert expected <= options.keys()
    assert without_help(options.items()) == []
