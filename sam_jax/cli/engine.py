"""`sam-jax engine`: the data engine."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from sam_jax.cli import engine_models, engine_serve, engine_store, parsing

COMMANDS = {
    "init": engine_store.Init,
    "add": engine_store.Add,
    "serve": engine_serve.Serve,
    "status": engine_store.Status,
    "fill": engine_models.Fill,
    "retrain": engine_models.Retrain,
    "roll-back": engine_models.RollBack,
    "auto": engine_models.Auto,
    "audit": engine_store.Audit,
    "export": engine_store.Export,
    "import": engine_store.Import,
}
HELP = """Label images by hand and by model, round after round, as section 4 of the SAM paper describes.

    {program} init my_store                           make a store
    {program} add my_store images/                    add images
    {program} serve my_store                          label them in a browser
    {program} status my_store                         where it stands, and statistics over rounds
    {program} fill my_store                           have masks proposed to annotators
    {program} retrain my_store                        train the next model, and use it if it is better
    {program} roll-back my_store                      use an earlier model again
    {program} auto my_store                           have the other images annotated without people
    {program} audit my_store --sample 50              have automatic masks corrected, to measure them
    {program} export my_store OUT --format coco       write the masks: sa1b, coco, label-studio
    {program} import my_store FILE --format coco      take masks in

`{program} COMMAND --help`, for instance `{program} add --help`, explains each."""


def main(argv: Sequence[str] | None = None, program: str = "sam-jax engine") -> int:
    """Runs one of the commands."""
    return parsing.run_chosen(COMMANDS, program, HELP, argv, _run)


def _run(command: Any) -> int:
    try:
        done: int = command.run()
    except sqlite3.OperationalError as error:
        raise ValueError(f"the store cannot be used ({error}); free it or some disk space, and try again") from error
    return done
