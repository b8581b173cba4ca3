"""The tasks of a store: who labels which image, for how long it is theirs, and what becomes of it."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sam_jax.engine.database import Database
from sam_jax.engine.rows import CHECKS, CLAIMED, DONE, OPEN, REPEAT, NotFound, NotHeld, Task, checked_key

LEASE_SECONDS = 600.0
# May be handed out: no image that another annotator works on, and nobody's own image to be labelled once more.
_FREE = """NOT EXISTS (SELECT 1 FROM tasks AS other WHERE other.image_id = tasks.image_id AND other.id != tasks.id
    AND other.state = 'claimed' AND other.annotator != :annotator AND other.lease_until >= :now)
    AND image_id NOT IN (SELECT value FROM json_each(:passed))
    AND (stage != 'repeat' OR NOT EXISTS (SELECT 1 FROM tasks AS other WHERE other.image_id = tasks.image_id
        AND other.id != tasks.id AND other.annotator = :annotator))"""


class TaskTable(Database):
    """Hands out images and takes them back."""

    def claim_next(
        self,
        annotator: str,
        stage: str | None = None,
        image_id: int | None = None,
        lease_seconds: float = LEASE_SECONDS,
        shared: bool = False,
        passed: Sequence[int] = (),
    ) -> Task | None:
        """The next image for somebody; None when nothing is left. Who holds one already gets that one again.

        Args:
          stage: tasks of this stage alone; None takes any, the oldest first.
          image_id: this image; one that is done is opened again.
          lease_seconds: it is theirs for so long, and longer if they renew it. Then others may have it.
          shared: with `image_id`, a "repeat" task, though others have the image as well: to compare annotators.

          passed: ids of images that they have given back and do not want again now.

        Raises:
          NotHeld: another annotator works on `image_id`.
          NotFound: there is no such image.
        """
        now = self.clock()
        wanted = {
            "annotator": annotator,
            "stage": stage,
            "image": image_id,
            "now": now,
            "passed": json.dumps([*passed]),
        }
        with self.transaction() as connection:
            if shared and image_id is not None:
                task = _repeat(connection, annotator, image_id)
            else:
                task = _find_free(connection, wanted)
            if task is None and image_id is not None:
                task = _reopen(connection, annotator, image_id, now)
            if task is None:
                return None
            return _write(connection, task, state=CLAIMED, annotator=annotator, lease_until=now + lease_seconds)

    def renew(self, task_id: int, annotator: str, lease_seconds: float = LEASE_SECONDS) -> Task:
        """Keeps a task for longer. A lease that has run out is renewed if nobody else has the task. Raises NotHeld."""
        with self.transaction() as connection:
            task = held_task(connection, task_id, annotator)
            return _write(connection, task, lease_until=self.clock() + lease_seconds)

    def release(self, task_id: int, annotator: str) -> Task:
        """Gives a task back unfinished; what was saved stays. Raises NotHeld."""
        with self.transaction() as connection:
            task = find_task(connection, task_id)
            if task.state == OPEN:
                return task  # given back already
            task = held_task(connection, task_id, annotator)
            return _write(connection, task, state=OPEN, annotator=None, lease_until=None)

    def finish(
        self,
        task_id: int,
        annotator: str,
        seconds: float | None = None,
        order: Sequence[str] = (),
        model_version: int | None = None,
    ) -> Task:
        """Marks a task as done. Finishing it once more changes nothing.

        Args:
          seconds: of work; added to that of an earlier time.
          order: keys of masks, the most prominent first.
          model_version: id of the model that helped.

        Raises:
          NotHeld: it is not theirs.
          ValueError: a key is no UUID.
        """
        with self.transaction() as connection:
            task = find_task(connection, task_id)
            if task.state == DONE and task.annotator == annotator:
                return task
            task = held_task(connection, task_id, annotator)
            connection.executemany(
                "UPDATE masks SET prominence = ? WHERE key = ? AND image_id = ?",
                [(rank, checked_key(key), task.image_id) for rank, key in enumerate(order)],
            )
            count = connection.execute(
                f"SELECT count(*) FROM masks WHERE image_id = :image AND state = 'accepted' AND {masks_of(task)}",
                {"image": task.image_id, "task": task.id},
            ).fetchone()[0]
            spent = None if seconds is None and task.seconds is None else (seconds or 0.0) + (task.seconds or 0.0)
            return _write(
                connection,
                task,
                state=DONE,
                lease_until=None,
                seconds=spent,
                masks=count,
                model_version=model_version,
                finished_at=self.clock(),
            )

    def add_task(self, image_id: int, stage: str) -> Task:
        """A new task for an image. Raises NotFound."""
        with self.transaction() as connection:
            return _insert(connection, image_id, stage)

    def task(self, task_id: int) -> Task:
        """A task. Raises NotFound."""
        return find_task(self._connection(), task_id)

    def tasks(self, stage: str | None = None, state: str | None = None) -> Iterator[Task]:
        """Tasks by ascending id; streamed."""
        sql = "SELECT * FROM tasks WHERE ifnull(stage = ?, 1) AND ifnull(state = ?, 1)"
        return map(_row, self.stream(sql, stage, state))

    def image_tasks(self, image_id: int) -> list[Task]:
        """All tasks of an image, the oldest first."""
        return [_row(row) for row in self.select("SELECT * FROM tasks WHERE image_id = ? ORDER BY id", image_id)]


def masks_of(task: Task) -> str:
    """The condition for those masks of its image that a task is about; :task is its id."""
    return "task_id = :task" if task.stage in CHECKS else "stage NOT IN ('repeat', 'audit')"


def _find_free(connection: sqlite3.Connection, wanted: Mapping[str, Any]) -> Task | None:
    """Their own, else the oldest open one, else one whose lease has run out longest ago."""
    # Conditions that are not asked for stay away, so that SQLite finds the index for those that are.
    limits = {"stage": "AND stage = :stage", "image": "AND image_id = :image"}
    only = " ".join(text for name, text in limits.items() if wanted[name] is not None)
    for condition in (
        f"state = 'claimed' AND annotator = :annotator {only} ORDER BY lease_until DESC",
        f"state = 'open' {only} AND {_FREE} ORDER BY id",
        f"state = 'claimed' AND lease_until < :now {only} AND {_FREE} ORDER BY lease_until",
    ):
        row = connection.execute(f"SELECT * FROM tasks WHERE {condition} LIMIT 1", wanted).fetchone()
        if row is not None:
            return _row(row)
    return None


def _reopen(connection: sqlite3.Connection, annotator: str, image_id: int, now: float) -> Task | None:
    """The task of an image that is done, to be corrected."""
    _check_image(connection, image_id)
    sql = "SELECT * FROM tasks WHERE image_id = ? AND stage NOT IN ('repeat', 'audit') ORDER BY id DESC"
    tasks = [_row(row) for row in connection.execute(sql, (image_id,))]
    everyone = connection.execute("SELECT * FROM tasks WHERE image_id = ? AND state = 'claimed'", (image_id,))
    for other in map(_row, everyone):
        if other.annotator != annotator and (other.lease_until or 0) >= now:
            raise NotHeld(other, annotator)
    return next((task for task in tasks if task.state == DONE), None)


def _repeat(connection: sqlite3.Connection, annotator: str, image_id: int) -> Task | None:
    """Their "repeat" task of an image; a new one if they have none."""
    _check_image(connection, image_id)
    row = connection.execute(
        "SELECT * FROM tasks WHERE image_id = ? AND stage = ? AND annotator = ?", (image_id, REPEAT, annotator)
    ).fetchone()
    return _insert(connection, image_id, REPEAT) if row is None else _row(row)


def _check_image(connection: sqlite3.Connection, image_id: int) -> None:
    if connection.execute("SELECT 1 FROM images WHERE id = ?", (image_id,)).fetchone() is None:
        raise NotFound(f"there is no image {image_id}")


def _insert(connection: sqlite3.Connection, image_id: int, stage: str) -> Task:
    _check_image(connection, image_id)
    values = (image_id, stage, OPEN)
    task_id = connection.execute("INSERT INTO tasks (image_id, stage, state) VALUES (?, ?, ?)", values).lastrowid
    assert task_id is not None
    return find_task(connection, task_id)


def find_task(connection: sqlite3.Connection, task_id: int) -> Task:
    """A task, inside a transaction. Raises NotFound."""
    row = connection.execute("SELECT * FROM tasks WHERE id = ?", (task_id,)).fetchone()
    if row is None:
        raise NotFound(f"there is no task {task_id}")
    return _row(row)


def held_task(connection: sqlite3.Connection, task_id: int, annotator: str) -> Task:
    """A task, inside a transaction, if it is theirs. Raises NotHeld, NotFound."""
    task = find_task(connection, task_id)
    if task.state != CLAIMED or task.annotator != annotator:
        raise NotHeld(task, annotator)
    return task


def _write(connection: sqlite3.Connection, task: Task, **changes: object) -> Task:
    names = ", ".join(f"{name} = ?" for name in changes)
    connection.execute(f"UPDATE tasks SET {names}, version = version + 1 WHERE id = ?", (*changes.values(), task.id))
    return dataclasses.replace(task, version=task.version + 1, **changes)  # type: ignore[arg-type]


def _row(row: sqlite3.Row) -> Task:
    return Task(**dict(row))
