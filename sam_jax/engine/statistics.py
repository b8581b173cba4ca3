"""How the work on a store goes: as a whole, and from model to model."""

from __future__ import annotations

import dataclasses

from sam_jax.engine.database import Database
from sam_jax.engine.rows import ASSISTED

_TOTALS = """SELECT ifnull(sum(masks), 0) AS masks, ifnull(sum(masks * (1 - from_model)), 0) AS added,
    sum(seconds) / nullif(sum(timed), 0) AS seconds, sum(proposal_iou) / nullif(sum(proposals), 0) AS proposal_iou
    FROM totals WHERE stage {stages}"""
_BY_PEOPLE = "IN ('assisted-manual', 'semi-automatic')"


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Where a store stands. Averages are None where there is nothing to average.

    Attributes:
      stage: of the oldest task that is not done; of the last one where all are.
      images, done, open: images in all; tasks that are done, and that are not, checks left out.
      masks: accepted ones of all stages.
      masks_per_image: accepted masks of an image when its task was done.
      seconds_per_mask: of work of people on an accepted mask.
      share_new: of the masks accepted in stage "semi-automatic", those that people added.
      proposal_iou: IoU of what a model proposed first with what was accepted.
    """

    stage: str
    images: int
    done: int
    open: int
    masks: int
    masks_per_image: float | None
    seconds_per_mask: float | None
    share_new: float | None
    proposal_iou: float | None


@dataclasses.dataclass(frozen=True)
class RoundStatistics:
    """What was done with the help of one model version, in one stage.

    Attributes:
      version: id; name, round, state: of the model version.
      images: that were done with it. masks: accepted ones that it made or helped with.
      Others as in `Statistics`.
    """

    version: int
    name: str
    round: int
    state: str
    stage: str
    images: int
    masks: int
    masks_per_image: float | None
    seconds_per_mask: float | None
    share_new: float | None
    proposal_iou: float | None


class StatisticsTable(Database):
    """Counts and averages. None of it reads the masks themselves: it takes milliseconds, however many there are."""

    def statistics(self) -> Statistics:
        """Where the store stands."""
        tasks = self.select(
            """SELECT ifnull(sum(state = 'done'), 0) AS done, ifnull(sum(state != 'done'), 0) AS open,
                avg(masks) AS masks_per_image,
                (SELECT stage FROM tasks WHERE state != 'done' ORDER BY id LIMIT 1) AS stage,
                (SELECT stage FROM tasks ORDER BY finished_at DESC LIMIT 1) AS last
                FROM tasks WHERE stage NOT IN ('repeat', 'audit')"""
        )[0]
        (everything,) = self.select(_TOTALS.format(stages="NOT IN ('repeat', 'audit')"))
        (people,) = self.select(_TOTALS.format(stages=_BY_PEOPLE))
        (semi,) = self.select(_TOTALS.format(stages="= 'semi-automatic'"))
        images = self.select_one("SELECT count(*) AS n FROM images")
        return Statistics(
            stage=tasks["stage"] or tasks["last"] or ASSISTED,
            images=images["n"] if images else 0,
            done=tasks["done"],
            open=tasks["open"],
            masks=everything["masks"],
            masks_per_image=tasks["masks_per_image"],
            seconds_per_mask=people["seconds"],
            share_new=semi["added"] / semi["masks"] if semi["masks"] else None,
            proposal_iou=people["proposal_iou"],
        )

    def round_statistics(self) -> list[RoundStatistics]:
        """The same for each model version and stage in which something was done, by version."""
        rows = self.select(
            """WITH
            work AS (SELECT model_version, stage, sum(masks) AS masks, sum(masks * (1 - from_model)) AS added,
                sum(seconds) / nullif(sum(timed), 0) AS seconds,
                sum(proposal_iou) / nullif(sum(proposals), 0) AS proposal_iou
                FROM totals GROUP BY 1, 2 HAVING sum(masks) > 0),
            images AS (SELECT model_version, stage, count(*) AS images, avg(masks) AS masks_per_image
                FROM (SELECT model_version, stage, masks FROM tasks WHERE state = 'done' UNION ALL
                    SELECT model_version, stage, masks FROM fills WHERE stage = 'automatic') GROUP BY 1, 2),
            pairs AS (SELECT model_version, stage FROM work UNION SELECT model_version, stage FROM images)
            SELECT versions.id AS version, versions.name, versions.round, versions.state, pairs.stage,
                ifnull(images.images, 0) AS images, ifnull(work.masks, 0) AS masks, images.masks_per_image,
                work.seconds AS seconds_per_mask,
                CASE WHEN pairs.stage = 'semi-automatic' THEN work.added * 1.0 / work.masks END AS share_new,
                work.proposal_iou
            FROM pairs JOIN model_versions AS versions ON versions.id = pairs.model_version
            LEFT JOIN work USING (model_version, stage) LEFT JOIN images USING (model_version, stage)
            ORDER BY versions.id, pairs.stage"""
        )
        return [RoundStatistics(**dict(row)) for row in rows]
