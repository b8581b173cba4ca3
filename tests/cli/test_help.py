"""The `sam-jax` command: every option of every sub-command says what it does, and help does not wait for JAX."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from sam_jax.cli import convert, data, engine, main, train, zero_shot

ROOT = Path(__file__).parents[2]
COMMANDS = [
    ["infer"],
    ["video"],
    ["evaluate"],
    ["serve"],
    *(["train", name] for name in train.recipes()),
    *(["convert", name] for name in convert.COMMANDS),
    *(["data", name] for name in data.COMMANDS),
    *(["engine", name] for name in engine.COMMANDS),
    *(["zero-shot", name] for name in zero_shot.TASKS),
]


def help_of(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def arguments_of(text):
    """Pairs of an argument's name and its help. Names stand at the left, what follows below further right."""
    entries = []
    for line in re.split(r"^ -{4,} *$", text, maxsplit=1, flags=re.M)[1].splitlines():
        line = line.rstrip()
        indent = len(line) - len(line.lstrip())
        other_name = entries and entries[-1].endswith(",") and " " not in entries[-1]  # a switch of two long names
        if re.match(r" {2}(-[-h]|[A-Z]+(?: {2}|$))", line) and line.strip(" -") and not other_name:
            entries.append(line.strip())
        elif entries and indent > 3:
            entries[-1] += "  " + line.strip()
    for entry in entries:
        name, _, rest = entry.partition(" ")
        # Behind the name a form of the value may stand, then two blanks, then the text.
        yield name.rstrip(","), re.split(r" {2,}", f" {rest}", maxsplit=1)[-1]


def without_help(arguments):
    notes = r"\((default|required|repeatable)\b.*\)"
    return [name for name, text in arguments if not re.sub(notes, "", text, flags=re.S).strip()]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_argument_has_help(words, capsys):
    arguments = list(arguments_of(help_of(words, capsys)))
    assert len(arguments) > (100 if words[0] == "train" else 0 if words == ["engine", "status"] else 1)
    assert without_help(arguments) == []


BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.oracle] * ("torch" in name)) for name in BENCHMARKS]
)
def test_every_argument_of_a_benchmark_has_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"), run_name="__main__")
    assert caught.value.code == 0
    arguments = list(arguments_of(capsys.readouterr().out))
    assert len(arguments) > 3
    assert without_help(arguments) == []


def test_a_missing_help_is_seen():
    lines = ["x [OPTIONS]", " options", " ----", "  --a INT    of use (default: 1)", "  --b INT    (default: 2)"]
    lines += ["  --long-one {None}|INT", "             (default: None)", "  --more INT", "             told below"]
    assert without_help(arguments_of("\n".join(lines))) == ["--b", "--long-one"]


def test_options_of_training_are_all_there(capsys):
    names = {name for name, _ in arguments_of(help_of(["train", "bundled"], capsys))}
    assert {
        "--coordinator",
        "--eval-images",
        "--loss.focal-gamma",
        "--optim.learning-rate",
        "--stages.0.batch-size",
    } <= names


@pytest.mark.parametrize("words", [[], ["train"], ["convert"], ["data"], ["engine"], ["zero-shot"]], ids=" ".join)
def test_help_of_several_names_each(words, capsys):
    assert main.main([*words, "--help"]) == 0
    text = capsys.readouterr().out
    names = {(): main.COMMANDS, ("train",): train.recipes(), ("convert",): convert.COMMANDS, ("data",): data.COMMANDS}
    names |= {("zero-shot",): zero_shot.TASKS, ("engine",): engine.COMMANDS}
    assert all(name in text for name in names[tuple(words)])
    assert main.main(words) == 2  # nothing was asked for


def test_a_misspelt_command_gets_a_suggestion(capsys):
    assert main.main(["trian", "bundled"]) == 2
    assert "did you mean train?" in capsys.readouterr().err
    assert main.main(["data", "statz"]) == 2
    assert "sam-jax data: unknown command 'statz'" in capsys.readouterr().err
    assert main.main(["train", "sa1b_vit_x"]) == 2
    assert "is not the name of a recipe: bundled, " in capsys.readouterr().err


def test_the_version(capsys):
    import sam_jax

    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sam_jax {sam_jax.__version__}\n"


@pytest.mark.parametrize(
    "words", [[], ["infer"], ["train", "bundled"], ["evaluate"], ["data", "check"], ["engine", "add"]], ids=str
)
def test_help_does_not_load_jax(words):
    code = (
        "import sys, contextlib, time, io\n"
        "from sam_jax.cli.main import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        f"    main({[*words, '--help']!r})\n"
        "print(sorted({'jax', 'numpy', 'flax'} & sys.modules.keys()), time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    loaded, seconds = done.stdout.strip().rsplit(" ", 1)
    assert loaded == "[]"
    assert float(seconds) < 1
