"""`sam-jax video`: its options, the prompts of the command line, and what they run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from sam_jax.cli import parsing
from sam_jax.config import VideoConfig

if TYPE_CHECKING:
    from sam_jax.video.prompts import FramePrompt


@dataclasses.dataclass(frozen=True)
class Video:
    """Carry the masks of objects through all frames of a video.

    Examples:
        sam-jax video frames/ --box 120,80,310,270                 one object, by its box on the first frame
        sam-jax video clip.mp4 --box 120,80,310,270 --box 400,90,520,300    two objects, numbered 1 and 2
        sam-jax video frames/ --point 200,150@30                   an object that is clicked on frame 30
        sam-jax video frames/ --box 120,80,310,270 --box 150,90,330,280@40:1    object 1 corrected on frame 40
        sam-jax video frames/ --box 120,80,310,270 --truth masks/  and scored by J&F, as DAVIS does

    FRAMES is a directory of images, in the order of their names, or a video file, which needs the extra `video`
    (PyAV), as --overlay does. Behind @ stands the number of the frame, from 0 (the default), and behind : the number of
    the object. Boxes without one are objects of their own, points without one belong to object 1. Coordinates are
    pixels of the frame. A prompt on a later frame corrects the masks around it, back and forth.

    Written to --out: masks/NAME.png (object numbers, with the palette of DAVIS), scores.json and scores.csv (predicted
    IoU, area and box per frame and object) and, with --overlay, overlay.mp4. Run the same command again to continue an
    interrupted run.
    """

    frames: Annotated[Positional[str], arg(metavar="FRAMES", help="directory of images, or a video file")]
    box: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="X0,Y0,X1,Y1[@FRAME[:OBJECT]]", help="box of an object")
    ] = ()
    point: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(metavar="X,Y[,L][@FRAME[:OBJECT]]", help="label L: 1 on the object, 0 off it"),
    ] = ()
    checkpoint: parsing.Checkpoint = None
    dtype: parsing.Dtype = None
    out: Annotated[str, arg(metavar="DIR", help="directory for results")] = "video_out"
    overlay: Annotated[bool, arg(help="also write overlay.mp4")] = False
    truth: Annotated[str | None, arg(metavar="DIR", help="true masks as PNGs: print and write J&F (davis.json)")] = None
    memory: Annotated[int, arg(help="last good frames to remember")] = VideoConfig.memory
    occlusion_iou: Annotated[
        float, arg(help="an object is hidden below this share of the predicted IoU that its prompt had")
    ] = VideoConfig.occlusion_iou

    def run(self) -> None:
        """Carries masks, writes and prints."""
        prompts = read_prompts(self.box, self.point)
        settings = VideoConfig(memory=self.memory, occlusion_iou=self.occlusion_iou)
        from sam_jax.checkpoint import load_model
        from sam_jax.files import absolute, write_atomically
        from sam_jax.runtime import use_compilation_cache
        from sam_jax.video.davis import evaluate_masks
        from sam_jax.video.frames import import_av, open_frames
        from sam_jax.video.propagation import VideoPropagator
        from sam_jax.video.results import VideoResults
        from sam_jax.video.run import carry_through_video

        use_compilation_cache()
        if self.overlay:
            import_av()  # now, not after the work
        frames = open_frames(self.frames)
        model, variables = load_model(self.checkpoint, self.dtype)
        propagator = VideoPropagator(model, variables, frames, prompts, settings)
        about: dict[str, Any] = {"frames": absolute(self.frames), "checkpoint": self.checkpoint, "dtype": self.dtype}
        about |= {"prompts": [dataclasses.asdict(p) for p in propagator.prompts]} | dataclasses.asdict(settings)
        results = VideoResults(self.out, frames, about)
        print(carry_through_video(propagator, results).text())
        print(f"wrote {results.masks}, scores.json and scores.csv")
        if self.overlay:
            print(f"wrote {results.write_overlay()}")
        if self.truth is not None:
            scores = evaluate_masks(results.masks, self.truth)
            write_atomically(results.out / "davis.json", json.dumps(scores, indent=1).encode())
            means = ", ".join(f"{name} {scores[name]:.3f}" for name in ("J&F", "J", "F"))
            print(f"{means} (mean of {len(scores['objects'])} objects; wrote davis.json)")


def read_prompts(boxes: Sequence[str], points: Sequence[str]) -> list[FramePrompt]:
    """The prompts of the command line. Raises ValueError for malformed ones, and if there is none."""
    from sam_jax.video.prompts import FramePrompt

    prompts, own = [], 0
    for text in boxes:
        values, frame, number = _parse(text, (4,), "X0,Y0,X1,Y1[@FRAME[:OBJECT]]")
        own += number is None
        prompts.append(FramePrompt(frame, number or own, box=(values[0], values[1], values[2], values[3])))
    for text in points:
        values, frame, number = _parse(text, (2, 3), "X,Y[,LABEL][@FRAME[:OBJECT]]")
        label = values[2] if len(values) == 3 else 1
        if label not in (0, 1):
            raise ValueError(f"point label {label:g} is neither 1 (on the object) nor 0 (off it)")
        prompts.append(FramePrompt(frame, number or 1, ((values[0], values[1]),), (int(label),)))
    if not prompts:
        raise ValueError("no prompts given; mark each object with --box or --point on some frame (see --help)")
    return prompts


def _parse(text: str, counts: tuple[int, ...], form: str) -> tuple[list[float], int, int | None]:
    """Numbers, the frame and the number of the object, None if it is not given."""
    numbers, _, place = text.partition("@")
    frame, _, number = place.partition(":")
    try:
        values = [float(part) for part in numbers.split(",")]
        found = values, int(frame or 0), int(number) if number else None
    except ValueError:
        values = []
    if len(values) not in counts:
        raise ValueError(f"{text!r} is not of the form {form}")
    return found


def main(argv: Sequence[str] | None = None, program: str = "sam-jax video") -> int:
    """Runs the command; bad input ends in one line on stderr and exit code 2."""
    command = parsing.parse(Video, program, argv)
    return parsing.run(program, command.run)
