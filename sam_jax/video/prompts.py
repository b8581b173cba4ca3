"""Prompts on frames of a video: which object, on which frame, and what is given there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sam_jax.video.frames import Frames

MOST_OBJECTS = 254  # DAVIS' indexed PNGs: 0 is background, 255 is void


@dataclass(frozen=True)
class FramePrompt:
    """What is given for one object on one frame. A later frame's prompt corrects the masks near it.

    Attributes:
      frame: its number, from 0.
      object: number of the object, from 1.
      points: (x, y) in pixels of the frame; labels: 1 on the object, 0 off it, one each.
      box: x0, y0, x1, y1 in pixels of the frame.
    """

    frame: int
    object: int
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.object <= MOST_OBJECTS:
            raise ValueError(f"object {self.object} is not one of 1 to {MOST_OBJECTS}")
        if not self.points and self.box is None:
            raise ValueError(f"object {self.object} has no prompt on frame {self.frame}; give points or a box")
        if len(self.points) != len(self.labels) or set(self.labels) - {0, 1}:
            raise ValueError(f"labels {self.labels} do not fit {len(self.points)} points; expected 1 or 0 for each")


def join_prompts(prompts: Sequence[FramePrompt]) -> list[FramePrompt]:
    """Joins points and boxes of the same object on the same frame. Raises ValueError for two boxes."""
    joined: dict[tuple[int, int], FramePrompt] = {}
    for new in prompts:
        key = new.frame, new.object
        if key in joined:
            old = joined[key]
            if old.box and new.box:
                raise ValueError(f"object {new.object} has two boxes on frame {new.frame}; number the objects")
            new = FramePrompt(*key, old.points + new.points, old.labels + new.labels, old.box or new.box)
        joined[key] = new
    return [joined[key] for key in sorted(joined)]


def check_prompts(prompts: Sequence[FramePrompt], frames: Frames) -> None:
    """Raises ValueError, before work begins, for a prompt outside of its frame or of the video."""
    if not prompts:
        raise ValueError("no prompts given; give a box or points of each object on some frame")
    h, w = frames.size
    for prompt in prompts:
        if not 0 <= prompt.frame < len(frames.names):
            raise ValueError(f"frame {prompt.frame} does not exist; the video has frames 0 to {len(frames.names) - 1}")
        where = f"the frame {prompt.frame}, which is {w}x{h} pixels"
        for x, y in prompt.points:
            if not (0 <= x <= w and 0 <= y <= h):
                raise ValueError(f"point {x:g},{y:g} lies outside of {where}")
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box
            text = ",".join(f"{v:g}" for v in prompt.box)
            if not (np.isfinite(prompt.box).all() and x0 < x1 and y0 < y1):
                raise ValueError(f"box {text} is empty; expected x0 < x1 and y0 < y1 (corners, not width and height)")
            if x1 <= 0 or y1 <= 0 or x0 >= w or y0 >= h:
                raise ValueError(f"box {text} lies outside of {where}")
