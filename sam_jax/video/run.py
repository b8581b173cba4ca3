"""Runs a video: from frames and prompts to files on disk. The work behind `sam-jax video`."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tqdm import tqdm

from sam_jax.video.propagation import VideoPropagator
from sam_jax.video.results import VideoResults

SAVE_EVERY = 8  # frames between saves of the progress


@dataclass(frozen=True)
class Summary:
    """frames: of the video; carried: frames of this run; seconds: of this run; hidden: masks of hidden objects."""

    frames: int
    carried: int
    seconds: float
    hidden: int

    def text(self) -> str:
        """The summary as a line of text."""
        if not self.carried:
            return f"{self.frames} frames were finished already"
        gone = f", {self.hidden} masks empty as the object is hidden" if self.hidden else ""
        return f"{self.frames} frames done, {self.carried} of them now in {self.seconds:.1f} s{gone}"


def carry_through_video(propagator: VideoPropagator, results: VideoResults) -> Summary:
    """Writes the masks of all frames, with a progress bar on a terminal. Continues a run that was interrupted."""
    start, carried, frames = time.perf_counter(), 0, len(propagator.frames.names)
    if not results.is_finished():
        if state := results.load_progress():
            propagator.restore(state)
        before = propagator.position
        bar = tqdm(propagator.run(), total=len(propagator), initial=before, unit="frame", disable=None)
        for found in bar:
            results.write(found)
            carried += 1
            if propagator.position % SAVE_EVERY == 0:
                results.save_progress(propagator.state())
        results.finish()
    hidden = sum(row["hidden"] for row in results.rows)
    return Summary(frames, carried, time.perf_counter() - start, hidden)
