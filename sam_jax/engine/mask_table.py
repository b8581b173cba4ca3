"""The masks of a store. Each has a version: who saves a mask says which version he has seen, so that nobody's work is
overwritten unseen."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sam_jax.engine.image_table import ImageTable
from sam_jax.engine.rows import (
    ACCEPTED,
    AUTOMATIC,
    DELETED,
    PROPOSED,
    SEMI_AUTOMATIC,
    ImageRow,
    MaskDraft,
    MaskRow,
    NotFound,
    Task,
    VersionConflict,
    checked_key,
)
from sam_jax.engine.run_lengths import MeasuredMask, iou_of, measure_mask
from sam_jax.engine.task_table import find_task, held_task, masks_of

_SELECT = "SELECT masks.*, images.height, images.width FROM masks JOIN images ON images.id = masks.image_id"
_ORDER = "ORDER BY masks.prominence IS NULL, masks.prominence, masks.id"
_OWN = ("id", "height", "width", "counts")  # columns that `MaskRow` has in another form
# What makes two saves of a mask the same.
_CONTENT = ("state", "author", "name", "counts", "prompts", "corrections", "seconds", "predicted_iou")


class MaskTable(ImageTable):
    """Saves and finds masks."""

    def save_mask(
        self, task_id: int, annotator: str, draft: MaskDraft, version: int, model_version: int | None = None
    ) -> MaskRow:
        """Accepts a mask, new or changed. Saving the same once more changes nothing.

        Args:
          draft: its `proposal` is kept from the first save on.
          version: of the mask when it was read, 0 for a new one.
          model_version: id of the model that helped.

        Raises:
          NotHeld: the task is not theirs.
          VersionConflict: the mask has changed since.
          NotFound: there is no such task.
          ValueError: the key is no UUID, or a segmentation is no mask of this image (see `measure_mask`).
        """
        key = checked_key(draft.key)
        size = self._image_size(find_task(self._connection(), task_id).image_id)
        found = measure_mask(draft.segmentation, size)
        offered = None if draft.proposal is None else measure_mask(draft.proposal, size).counts
        with self.transaction() as connection:
            task = find_task(connection, task_id)
            present = _find(connection, key)
            values = _values(draft, found, offered, size, present) | {"state": ACCEPTED, "author": annotator}
            if (
                present
                and present["version"] == version + 1
                and all(present[name] == values[name] for name in _CONTENT)
            ):
                return _mask(present)
            task = held_task(connection, task_id, annotator)
            _check_version(connection, key, task, present, version)
            now = self.clock()
            if present is None:
                own = {"key": key, "image_id": task.image_id, "task_id": task.id, "stage": task.stage}
                values |= own | {"from_model": 0, "model_version": model_version, "created_at": now, "version": 1}
                _insert(connection, values | {"updated_at": now})
            else:
                kept = values | {"updated_at": now, "version": version + 1}
                names = ", ".join(f"{name} = :{name}" for name in kept)
                connection.execute(f"UPDATE masks SET {names} WHERE key = :key", kept | {"key": key})
            saved = _find(connection, key)
            assert saved is not None
            return _mask(saved)

    def delete_mask(self, task_id: int, annotator: str, key: str, version: int) -> MaskRow:
        """Marks a mask as deleted; saving it with its new version brings it back. Deleting it once more changes
        nothing. Raises as `save_mask`."""
        key = checked_key(key)
        with self.transaction() as connection:
            task = find_task(connection, task_id)
            present = _find(connection, key)
            if present and present["state"] == DELETED and present["version"] in (version, version + 1):
                return _mask(present)
            task = held_task(connection, task_id, annotator)
            _check_version(connection, key, task, present, version)
            connection.execute(
                "UPDATE masks SET state = ?, author = ?, updated_at = ?, version = version + 1 WHERE key = ?",
                (DELETED, annotator, self.clock(), key),
            )
            gone = _find(connection, key)
            assert gone is not None
            return _mask(gone)

    def fill_image(
        self, image_id: int, drafts: Sequence[MaskDraft], stage: str, model_version: int, author: str = "model"
    ) -> bool:
        """Saves what a model found in an image: all of it or nothing, and once.

        In stage "semi-automatic" masks are proposed to annotators: the image's open task gets this stage. In stage
        "automatic" they are accepted.

        Returns:
          False, and nothing is saved, if this model version has been through the image in this stage, or if, to be
          proposed to, the image has no task that is open.

        Raises:
          NotFound: there is no such image.
          ValueError: as `save_mask`.
        """
        size = self._image_size(image_id)
        measured = [(draft, measure_mask(draft.segmentation, size)) for draft in drafts]
        with self.transaction() as connection:
            now, state = self.clock(), PROPOSED if stage == SEMI_AUTOMATIC else ACCEPTED
            done = (image_id, stage, model_version)
            if connection.execute(
                "SELECT 1 FROM fills WHERE image_id = ? AND stage = ? AND model_version = ?", done
            ).fetchone():
                return False
            if state == PROPOSED and not _open_for_proposals(connection, image_id):
                return False
            for rank, (draft, found) in enumerate(measured):
                values = _drafted(draft) | _measured(found)
                values |= {"key": checked_key(draft.key), "image_id": image_id, "stage": stage, "state": state}
                values |= {"from_model": 1, "author": author, "model_version": model_version, "task_id": None}
                values |= {"proposal": found.counts if state == PROPOSED else None, "proposal_iou": None}
                values |= {"created_at": now, "updated_at": now, "version": 1}
                values["prominence"] = rank if draft.prominence is None else draft.prominence
                _insert(connection, values)
            connection.execute("INSERT INTO fills VALUES (?, ?, ?, ?, ?)", (*done, len(drafts), now))
        return True

    def add_masks(self, image_id: int, groups: Mapping[tuple[str, str], Sequence[MaskDraft]]) -> int:
        """Takes in accepted masks that were made elsewhere, all or none; how many are new. Keys that the store has are
        left as they are there.

        Args:
          groups: masks by (stage, author).

        Raises:
          NotFound: there is no such image.
          ValueError: as `save_mask`.
        """
        size, rows = self._image_size(image_id), dict[str, dict[str, Any]]()
        for (stage, author), drafts in groups.items():
            for draft in drafts:
                values = _drafted(draft) | _measured(measure_mask(draft.segmentation, size))
                values |= {"key": checked_key(draft.key), "image_id": image_id, "stage": stage, "state": ACCEPTED}
                values |= {"from_model": int(stage == AUTOMATIC), "author": author, "version": 1}
                rows[values["key"]] = values
        with self.transaction() as connection:
            now = {"created_at": self.clock(), "updated_at": self.clock()}
            new = [values for key, values in rows.items() if _find(connection, key) is None]
            for values in new:
                _insert(connection, values | now)
        return len(new)

    def is_filled(self, image_id: int, stage: str, model_version: int) -> bool:
        """Whether a model version has been through an image in a stage."""
        sql = "SELECT 1 FROM fills WHERE image_id = ? AND stage = ? AND model_version = ?"
        return self.select_one(sql, image_id, stage, model_version) is not None

    def mask(self, key: str) -> MaskRow:
        """A mask. Raises NotFound."""
        row = _find(self._connection(), checked_key(key))
        if row is None:
            raise NotFound(f"there is no mask {key}")
        return _mask(row)

    def masks(
        self,
        image_id: int,
        *,
        stage: str | None = None,
        state: str | None = ACCEPTED,
        checks: bool = False,
    ) -> list[MaskRow]:
        """Masks of an image, the most prominent first.

        Args:
          stage: those of this stage; None gives those of the data set, of all of its stages.
          state: those in this state; None gives all.
          checks: with stage None, those of "repeat" and "audit", too.
        """
        conditions = ["masks.image_id = :image"]
        if stage is not None:
            conditions.append("masks.stage = :stage")
        elif not checks:
            conditions.append("masks.stage NOT IN ('repeat', 'audit')")
        if state is not None:
            conditions.append("masks.state = :state")
        values = {"image": image_id, "stage": stage, "state": state}
        sql = f"{_SELECT} WHERE {' AND '.join(conditions)} {_ORDER}"
        return [_mask(row) for row in self._connection().execute(sql, values)]

    def task_masks(self, task: Task) -> list[MaskRow]:
        """What the annotator of a task sees: masks that are proposed or accepted, the most prominent first."""
        sql = (
            f"{_SELECT} WHERE masks.image_id = :image AND masks.state != 'deleted' AND masks.{masks_of(task)} {_ORDER}"
        )
        return [_mask(row) for row in self._connection().execute(sql, {"image": task.image_id, "task": task.id})]

    def labelled_images(
        self, *, stage: str | None = None, state: str | None = ACCEPTED, held_out: bool | None = None
    ) -> Iterator[tuple[ImageRow, list[MaskRow]]]:
        """Images that have masks, and these, as `masks` gives them; by ascending id. One image's in memory at once."""
        for image in self.images(held_out):
            if found := self.masks(image.id, stage=stage, state=state):
                yield image, found

    def stream_masks(
        self, *, stage: str | None = None, state: str | None = ACCEPTED, held_out: bool | None = None
    ) -> Iterator[MaskRow]:
        """The same masks one by one."""
        for _, found in self.labelled_images(stage=stage, state=state, held_out=held_out):
            yield from found

    def _image_size(self, image_id: int) -> tuple[int, int]:
        row = self.select_one("SELECT height, width FROM images WHERE id = ?", image_id)
        if row is None:
            raise NotFound(f"there is no image {image_id}")
        return row["height"], row["width"]


def _open_for_proposals(connection: sqlite3.Connection, image_id: int) -> bool:
    """Gives the open task of an image the stage "semi-automatic"; False if it has none."""
    sql = "UPDATE tasks SET stage = ?, version = version + 1 WHERE image_id = ? AND state = 'open' AND stage IN (?, ?)"
    return connection.execute(sql, (SEMI_AUTOMATIC, image_id, "assisted-manual", SEMI_AUTOMATIC)).rowcount > 0


def _check_version(
    connection: sqlite3.Connection, key: str, task: Task, present: sqlite3.Row | None, version: int
) -> None:
    """Raises VersionConflict if a mask is not as it was read; NotFound if it is not one that the task is about."""
    if present is not None:
        sql = f"SELECT 1 FROM masks WHERE key = :key AND image_id = :image AND {masks_of(task)}"
        if not connection.execute(sql, {"key": key, "image": task.image_id, "task": task.id}).fetchone():
            raise NotFound(f"mask {key} is none of task {task.id}; choose another key for a new mask")
    if (present["version"] if present else 0) != version:
        raise VersionConflict(key, version, _mask(present) if present else None)


def _values(
    draft: MaskDraft,
    found: MeasuredMask,
    offered: str | None,
    size: tuple[int, int],
    present: sqlite3.Row | None,
) -> dict[str, Any]:
    """The columns that a save writes. What was proposed first, and what a draft does not tell, stays."""
    proposal = (present["proposal"] if present else None) or offered
    pair = [{"size": list(size), "counts": counts} for counts in (found.counts, proposal)]
    values = _drafted(draft) | _measured(found)
    for name in ("prominence", "stability_score"):
        if present and values[name] is None:
            values[name] = present[name]
    return values | {"proposal": proposal, "proposal_iou": None if proposal is None else iou_of(*pair)}


def _measured(found: MeasuredMask) -> dict[str, Any]:
    return {"counts": found.counts, "area": found.area, "bbox": json.dumps(found.bbox)}


def _drafted(draft: MaskDraft) -> dict[str, Any]:
    return {
        "name": draft.name,
        "prompts": None if draft.prompts is None else json.dumps(draft.prompts),
        "corrections": draft.corrections,
        "seconds": draft.seconds,
        "predicted_iou": draft.predicted_iou,
        "stability_score": draft.stability_score,
        "prominence": draft.prominence,
    }


def _insert(connection: sqlite3.Connection, values: dict[str, Any]) -> None:
    names = ", ".join(values)
    connection.execute(f"INSERT INTO masks ({names}) VALUES ({', '.join(f':{name}' for name in values)})", values)


def _find(connection: sqlite3.Connection, key: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = connection.execute(f"{_SELECT} WHERE masks.key = ?", (key,)).fetchone()
    return row


def _mask(row: sqlite3.Row) -> MaskRow:
    values = {name: value for name, value in dict(row).items() if name not in _OWN}
    size = [row["height"], row["width"]]
    values["from_model"] = bool(row["from_model"])
    values["segmentation"] = {"size": size, "counts": row["counts"]}
    values["bbox"] = json.loads(row["bbox"])
    values["prompts"] = None if row["prompts"] is None else json.loads(row["prompts"])
    values["proposal"] = None if row["proposal"] is None else {"size": size, "counts": row["proposal"]}
    return MaskRow(**values)
