"""The tables of the store, as steps from each version of the file to the next. Written steps never change."""

from __future__ import annotations

import sqlite3

APPLICATION_ID = 0x53414D45  # "SAME": SQLite files of other programs are refused

_FIRST = (
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE images (
        id INTEGER PRIMARY KEY,
        file_name TEXT NOT NULL UNIQUE,
        height INTEGER NOT NULL CHECK (height > 0),
        width INTEGER NOT NULL CHECK (width > 0),
        sha256 TEXT NOT NULL UNIQUE,
        held_out INTEGER NOT NULL CHECK (held_out IN (0, 1)),
        added_at REAL NOT NULL)""",
    """CREATE TABLE model_versions (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        path TEXT,
        parent INTEGER REFERENCES model_versions (id),
        round INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('candidate', 'promoted', 'rejected', 'retired')),
        metrics TEXT NOT NULL DEFAULT '{}',
        created_at REAL NOT NULL)""",
    "CREATE UNIQUE INDEX one_is_promoted ON model_versions (state) WHERE state = 'promoted'",
    """CREATE TABLE tasks (
        id INTEGER PRIMARY KEY,
        image_id INTEGER NOT NULL REFERENCES images (id),
        stage TEXT NOT NULL CHECK (stage IN ('assisted-manual', 'semi-automatic', 'repeat', 'audit')),
        state TEXT NOT NULL CHECK (state IN ('open', 'claimed', 'done')),
        annotator TEXT,
        lease_until REAL,
        version INTEGER NOT NULL DEFAULT 1,
        model_version INTEGER REFERENCES model_versions (id),
        masks INTEGER,
        seconds REAL,
        finished_at REAL,
        CHECK (state = 'open' OR annotator IS NOT NULL))""",
    "CREATE INDEX tasks_by_state ON tasks (state)",
    "CREATE INDEX tasks_by_stage ON tasks (state, stage)",
    "CREATE INDEX tasks_by_image ON tasks (image_id)",
    "CREATE INDEX tasks_by_lease ON tasks (lease_until) WHERE state = 'claimed'",
    """CREATE TABLE masks (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        image_id INTEGER NOT NULL REFERENCES images (id),
        task_id INTEGER REFERENCES tasks (id),
        stage TEXT NOT NULL
            CHECK (stage IN ('assisted-manual', 'semi-automatic', 'automatic', 'repeat', 'audit')),
        state TEXT NOT NULL CHECK (state IN ('proposed', 'accepted', 'deleted')),
        from_model INTEGER NOT NULL CHECK (from_model IN (0, 1)),
        author TEXT NOT NULL,
        model_version INTEGER REFERENCES model_versions (id),
        name TEXT,
        counts TEXT NOT NULL,
        area INTEGER NOT NULL CHECK (area > 0),
        bbox TEXT NOT NULL,
        predicted_iou REAL,
        stability_score REAL,
        prompts TEXT,
        corrections INTEGER NOT NULL DEFAULT 0,
        seconds REAL,
        proposal TEXT,
        proposal_iou REAL,
        prominence INTEGER,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        version INTEGER NOT NULL DEFAULT 1)""",
    "CREATE INDEX masks_by_image ON masks (image_id)",
    # Which images a model has gone through: where it found nothing, no mask says so.
    """CREATE TABLE fills (
        image_id INTEGER NOT NULL REFERENCES images (id),
        stage TEXT NOT NULL,
        model_version INTEGER NOT NULL REFERENCES model_versions (id),
        masks INTEGER NOT NULL,
        finished_at REAL NOT NULL,
        PRIMARY KEY (image_id, stage, model_version)) WITHOUT ROWID""",
)

# Totals of accepted masks, kept by triggers: statistics of millions of masks must not read them all.
_TOTALS_KEY = "model_version = ifnull({row}.model_version, 0) AND stage = {row}.stage AND from_model = {row}.from_model"
_ADD = """INSERT INTO totals VALUES (ifnull(new.model_version, 0), new.stage, new.from_model, 1,
        new.seconds IS NOT NULL, ifnull(new.seconds, 0), new.proposal_iou IS NOT NULL, ifnull(new.proposal_iou, 0))
    ON CONFLICT DO UPDATE SET masks = masks + 1,
        timed = timed + excluded.timed, seconds = seconds + excluded.seconds,
        proposals = proposals + excluded.proposals, proposal_iou = proposal_iou + excluded.proposal_iou"""
_SUBTRACT = f"""UPDATE totals SET masks = masks - 1,
        timed = timed - (old.seconds IS NOT NULL), seconds = seconds - ifnull(old.seconds, 0),
        proposals = proposals - (old.proposal_iou IS NOT NULL),
        proposal_iou = proposal_iou - ifnull(old.proposal_iou, 0)
    WHERE {_TOTALS_KEY.format(row="old")}"""
_SECOND = (
    """CREATE TABLE totals (
        model_version INTEGER NOT NULL,
        stage TEXT NOT NULL,
        from_model INTEGER NOT NULL,
        masks INTEGER NOT NULL,
        timed INTEGER NOT NULL,
        seconds REAL NOT NULL,
        proposals INTEGER NOT NULL,
        proposal_iou REAL NOT NULL,
        PRIMARY KEY (model_version, stage, from_model)) WITHOUT ROWID""",
    """INSERT INTO totals SELECT ifnull(model_version, 0), stage, from_model, count(*),
        count(seconds), ifnull(sum(seconds), 0), count(proposal_iou), ifnull(sum(proposal_iou), 0)
        FROM masks WHERE state = 'accepted' GROUP BY 1, 2, 3""",
    f"CREATE TRIGGER mask_added AFTER INSERT ON masks WHEN new.state = 'accepted' BEGIN {_ADD}; END",
    f"CREATE TRIGGER mask_gone AFTER UPDATE ON masks WHEN old.state = 'accepted' BEGIN {_SUBTRACT}; END",
    f"CREATE TRIGGER mask_changed AFTER UPDATE ON masks WHEN new.state = 'accepted' BEGIN {_ADD}; END",
    f"CREATE TRIGGER mask_removed AFTER DELETE ON masks WHEN old.state = 'accepted' BEGIN {_SUBTRACT}; END",
)
# MIGRATIONS[n] makes a file of version n + 1 from one of version n.
MIGRATIONS = (_FIRST, _SECOND)


class StoreError(ValueError):
    """A store that cannot be used; the message says what to do."""


def migrate(connection: sqlite3.Connection, name: str) -> None:
    """Brings a file to the newest version, each step in a transaction of its own; safe beside other processes.

    Args:
      connection: in autocommit mode.
      name: what errors call the file.

    Raises:
      StoreError: the file is of another program, or newer than this code.
    """
    while True:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = _checked_version(connection, name)
            if version == len(MIGRATIONS):
                return
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.commit()
        finally:
            connection.rollback()  # nothing, after a commit


def _checked_version(connection: sqlite3.Connection, name: str) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    owner: int = connection.execute("PRAGMA application_id").fetchone()[0]
    tables: int = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if owner != APPLICATION_ID and (owner or version or tables):
        raise StoreError(f"{name} is an SQLite file of another program; expected one that sam-jax engine init made")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{name} has version {version}, and this sam_jax knows versions up to {len(MIGRATIONS)}: "
            "use the sam_jax that wrote it, or a newer one"
        )
    return version
