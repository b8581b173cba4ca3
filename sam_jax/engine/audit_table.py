"""Tasks that check the data set: automatic masks to be corrected, and images to be labelled once more."""

from __future__ import annotations

import sqlite3
import uuid

import numpy as np

from sam_jax.engine.database import Database
from sam_jax.engine.rows import AUDIT, REPEAT, StoreError, Task
from sam_jax.engine.task_table import find_task

_CANDIDATES = {
    AUDIT: """EXISTS (SELECT 1 FROM masks WHERE masks.image_id = images.id AND masks.stage = 'automatic'
        AND masks.state = 'accepted')""",
    REPEAT: """EXISTS (SELECT 1 FROM tasks WHERE tasks.image_id = images.id AND tasks.state = 'done'
        AND tasks.masks > 0 AND tasks.stage IN ('assisted-manual', 'semi-automatic'))""",
}
_NAMES = {AUDIT: "automatic masks", REPEAT: "masks by an annotator"}
# Copies: the masks that are audited stay as they are.
_COPIED = "image_id, author, model_version, name, counts, area, bbox, predicted_iou, stability_score, prominence"


class AuditTable(Database):
    """Draws images and opens their tasks."""

    def open_checks(self, stage: str, count: int, seed: int = 0) -> list[Task]:
        """Opens tasks for images drawn at random: all of them or none.

        Args:
          stage: "audit": images that have automatic masks, of which the annotator gets copies to correct; or "repeat":
            images that somebody has finished, to be labelled from nothing by somebody else.
          count: of images; none that has such a task already is drawn.
          seed: of the draw.

        Raises:
          StoreError: there are not so many.
        """
        with self.transaction() as connection:
            sql = f"""SELECT id FROM images WHERE {_CANDIDATES[stage]} AND NOT EXISTS
                (SELECT 1 FROM tasks WHERE tasks.image_id = images.id AND tasks.stage = ?) ORDER BY id"""
            ids = [row["id"] for row in connection.execute(sql, (stage,))]
            if not 0 < count <= len(ids):
                raise StoreError(
                    f"{count} images are asked for; {len(ids)} have {_NAMES[stage]} and no {stage} task yet: "
                    f"ask for 1 to {len(ids)}"
                )
            drawn = np.sort(np.random.default_rng(seed).choice(ids, count, replace=False)).tolist()
            return [_open(connection, stage, image_id, self.clock()) for image_id in drawn]


def _open(connection: sqlite3.Connection, stage: str, image_id: int, now: float) -> Task:
    values = (image_id, stage)
    task_id = connection.execute("INSERT INTO tasks (image_id, stage, state) VALUES (?, ?, 'open')", values).lastrowid
    assert task_id is not None
    if stage == AUDIT:
        sql = "SELECT id FROM masks WHERE image_id = ? AND stage = 'automatic' AND state = 'accepted' ORDER BY id"
        for row in connection.execute(sql, (image_id,)).fetchall():
            connection.execute(
                f"""INSERT INTO masks
                    ({_COPIED}, key, task_id, stage, state, from_model, proposal, created_at, updated_at)
                    SELECT {_COPIED}, ?, ?, 'audit', 'proposed', 1, counts, ?, ? FROM masks WHERE id = ?""",
                (str(uuid.uuid4()), task_id, now, now, row["id"]),
            )
    return find_task(connection, task_id)
