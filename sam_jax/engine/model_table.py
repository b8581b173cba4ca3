"""The model versions of a store: one is promoted, the others are candidates, were not good enough, or have retired."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from etils import epath

from sam_jax.engine.database import Database
from sam_jax.engine.rows import CANDIDATE, PROMOTED, REJECTED, RETIRED, ModelVersion, NotFound, StoreError


class ModelTable(Database):
    """Adds, promotes and rolls back."""

    def present(self) -> ModelVersion:
        """The promoted version; there always is one."""
        row = self.select_one("SELECT * FROM model_versions WHERE state = ?", PROMOTED)
        if row is None:
            raise StoreError("the store has no promoted model; restore it from a copy")
        return _version(row)

    def model_version(self, version_id: int) -> ModelVersion:
        """A version. Raises NotFound."""
        return _find(self._connection(), version_id)

    def model_versions(self) -> list[ModelVersion]:
        """All of them, the first first."""
        return [_version(row) for row in self.select("SELECT * FROM model_versions ORDER BY id")]

    def model_path(self, version: ModelVersion) -> epath.Path | None:
        """The directory of a version, local or gs://; None for the bundled model."""
        if version.path is None:
            return None
        return epath.Path(version.path) if "://" in version.path else epath.Path(self.directory / version.path)

    def add_candidate(
        self, name: str, path: str | None, parent: int, metrics: dict[str, Any] | None = None
    ) -> ModelVersion:
        """A newly trained version.

        Args:
          name: unique. path: relative to the store's directory, or absolute.
          parent: id of the version that it was trained from.

        Raises:
          NotFound: there is no such parent.
          StoreError: the name is taken.
        """
        with self.transaction() as connection:
            number = _find(connection, parent).round + 1
            if connection.execute("SELECT 1 FROM model_versions WHERE name = ?", (name,)).fetchone():
                raise StoreError(f"a model version is called {name!r} already; choose another name")
            return _insert(connection, name, path, parent, number, CANDIDATE, metrics or {}, self.clock())

    def set_metrics(self, version_id: int, metrics: dict[str, Any]) -> ModelVersion:
        """Replaces what was measured of a version. Raises NotFound."""
        with self.transaction() as connection:
            _find(connection, version_id)
            connection.execute("UPDATE model_versions SET metrics = ? WHERE id = ?", (json.dumps(metrics), version_id))
            return _find(connection, version_id)

    def promote(self, version_id: int) -> ModelVersion:
        """Makes a version the present one; that which was retires. Raises NotFound."""
        with self.transaction() as connection:
            _find(connection, version_id)
            return _promote(connection, version_id)

    def reject(self, version_id: int) -> ModelVersion:
        """Marks a candidate as not good enough. Raises NotFound; StoreError if it is none."""
        with self.transaction() as connection:
            version = _find(connection, version_id)
            if version.state != CANDIDATE:
                raise StoreError(f"model version {version.name} is {version.state}; only a candidate can be rejected")
            connection.execute("UPDATE model_versions SET state = ? WHERE id = ?", (REJECTED, version_id))
            return _find(connection, version_id)

    def roll_back(self, to: int | None = None) -> ModelVersion:
        """Makes an earlier version the present one again: `to`, or the parent of the present one.

        Raises:
          NotFound: there is no such version.
          StoreError: the present one has no parent.
        """
        with self.transaction() as connection:
            row = connection.execute("SELECT * FROM model_versions WHERE state = ?", (PROMOTED,)).fetchone()
            target = _version(row).parent if to is None else to
            if target is None:
                raise StoreError(f"model version {row['name']} is the first one; there is none to go back to")
            _find(connection, target)
            return _promote(connection, target)


def add_first(connection: sqlite3.Connection, name: str, path: str | None, now: float) -> ModelVersion:
    """The version that a new store begins with, inside a transaction."""
    return _insert(connection, name, path, None, 0, PROMOTED, {}, now)


def _promote(connection: sqlite3.Connection, version_id: int) -> ModelVersion:
    connection.execute("UPDATE model_versions SET state = ? WHERE state = ?", (RETIRED, PROMOTED))
    connection.execute("UPDATE model_versions SET state = ? WHERE id = ?", (PROMOTED, version_id))
    return _find(connection, version_id)


def _insert(connection: sqlite3.Connection, *values: Any) -> ModelVersion:
    *plain, metrics, now = values
    names = "(name, path, parent, round, state, metrics, created_at)"
    row_id = connection.execute(
        f"INSERT INTO model_versions {names} VALUES (?, ?, ?, ?, ?, ?, ?)", (*plain, json.dumps(metrics), now)
    ).lastrowid
    assert row_id is not None
    return _find(connection, row_id)


def _find(connection: sqlite3.Connection, version_id: int) -> ModelVersion:
    row = connection.execute("SELECT * FROM model_versions WHERE id = ?", (version_id,)).fetchone()
    if row is None:
        raise NotFound(f"there is no model version {version_id}")
    return _version(row)


def _version(row: sqlite3.Row) -> ModelVersion:
    return ModelVersion(**dict(row) | {"metrics": json.loads(row["metrics"])})
