"""What the commands share: parsing by tyro, and errors that a user can mend in one line on stderr."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, TypeVar

import tyro
from tyro.conf import arg

T = TypeVar("T")
V = TypeVar("V")
# Options of every command that runs a model.
Checkpoint = Annotated[str | None, arg(metavar="DIR", help="model directory; None is the bundled vit_tiny")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "int8"] | None, arg(help="compute type; None is float32; int8 is for TPUs")
]
Crf = Annotated[bool, arg(help="refine masks at the image's edges (CRF); vit_tiny does so unless told not to")]
NoCrf = Annotated[bool, arg(help="no edge refinement")]
WRONG_INPUT = 2
STOPPED = 130


def parse(command: type[T], program: str, argv: Sequence[str] | None) -> T:
    """The command line as a `command`, whose docstring is the help; exits with 0 for --help and 2 for mistakes."""
    options = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    arguments = None if argv is None else list(argv)
    # Said outright: tyro would take parts of a docstring for sections of its own.
    return tyro.cli(command, prog=program, description=inspect.getdoc(command), args=arguments, config=options)


def choose(
    commands: Mapping[str, V], program: str, text: str, argv: Sequence[str] | None
) -> tuple[V, str, list[str]] | int:
    """The sub-command that a command line names: what it stands for, its program and arguments. Or an exit code.

    Args:
      text: the help of all sub-commands together, with `{program}` in it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(text.format(program=program))
        return 0 if arguments else WRONG_INPUT
    name, rest = arguments[0], arguments[1:]
    if name not in commands:
        near = difflib.get_close_matches(name, commands, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        complain(program, f"unknown command {name!r}, expected one of {', '.join(commands)}{hint}")
        return WRONG_INPUT
    return commands[name], f"{program} {name}", rest


def run(program: str, work: Callable[[], int | None]) -> int:
    """The exit code of some work; ValueError and OSError are wrong input."""
    try:
        return work() or 0
    except (ValueError, OSError) as error:
        complain(program, error)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print(f"{program}: stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED


def edge_refinement(crf: bool, no_crf: bool) -> bool | None:
    """What --crf and --no-crf say together; None is the model's own choice. Raises ValueError where they disagree."""
    if crf and no_crf:
        raise ValueError("--crf and --no-crf contradict each other")
    return True if crf else False if no_crf else None


def complain(program: str, error: BaseException | str) -> None:
    """One line on stderr."""
    print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
