"""Shared by the commands: parsing with tyro, and one-line messages on stderr for errors that a user can fix."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import arg

T = TypeVar("T")
V = TypeVar("V")
# Options of every command that runs a model.
Checkpoint = Annotated[str | None, arg(metavar="DIR", help="model directory; None is the bundled vit_tiny")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "int8"] | None, arg(help="compute dtype; None is float32; int8 is for TPUs")
]
Crf = Annotated[bool, arg(help="refine masks at the image's edges (CRF)")]
NoCrf = Annotated[bool, arg(help="no edge refinement")]
WRONG_INPUT = 2
STOPPED = 130


def parse(command: type[T], program: str, argv: Sequence[str] | None) -> T:
    """Parses the command line to a `command`, whose docstring is the help; exits with 0 for --help, 2 for mistakes."""
    options = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    arguments = None if argv is None else list(argv)
    # Pass the description: tyro would interpret parts of a docstring as sections of its own.
    return tyro.cli(command, prog=program, description=inspect.getdoc(command), args=arguments, config=options)


def choose(
    commands: Mapping[str, V], program: str, text: str, argv: Sequence[str] | None
) -> tuple[V, str, list[str]] | int:
    """Finds the sub-command that a command line names: its value in `commands`, its program name and its arguments.

    Returns an exit code instead after printing help or an error.

    Args:
      text: the help of all sub-commands together, with `{program}` as a placeholder.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(text.format(program=program))
        return 0 if arguments else WRONG_INPUT
    name, rest = arguments[0], arguments[1:]
    if name not in commands:
        near = difflib.get_close_matches(name, commands, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        complain(program, f"unknown command {name!r}; expected one of {', '.join(commands)}{hint}")
        return WRONG_INPUT
    return commands[name], f"{program} {name}", rest


def run_chosen(
    commands: Mapping[str, type],
    program: str,
    text: str,
    argv: Sequence[str] | None,
    work: Callable[[Any], int | None],
) -> int:
    """Parses the sub-command that a command line names and runs `work` on it; returns the exit code.

    Args:
      text: the help of all sub-commands together, with `{program}` as a placeholder.
    """
    chosen = choose(commands, program, text, argv)
    if isinstance(chosen, int):
        return chosen
    command: Any = parse(*chosen)
    return run(chosen[1], lambda: work(command))


def run(program: str, work: Callable[[], int | None]) -> int:
    """Runs `work` and returns the exit code; ValueError and OSError count as wrong input."""
    try:
        return work() or 0
    except (ValueError, OSError) as error:
        complain(program, error)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print(f"{program}: stopped; run the same command again to continue", file=sys.stderr)
        return STOPPED


def edge_refinement(crf: bool, no_crf: bool) -> bool | None:
    """The value of --crf and --no-crf; None means the model's own setting. Raises ValueError if both are given."""
    if crf and no_crf:
        raise ValueError("--crf and --no-crf contradict each other")
    return True if crf else False if no_crf else None


def complain(program: str, error: BaseException | str) -> None:
    """Prints an error as one line on stderr."""
    print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
