"""What `--text` stands for in `sam-jax infer`: which text model, which segmenter, and what is written.

`command` is always an `infer.Infer`, which this file cannot name: that one needs this.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_jax.config import TextOptions

if TYPE_CHECKING:
    from sam_jax.batch.one_image import ImagePrompts
    from sam_jax.batch.prompt_files import ObjectPrompt, PromptTable
    from sam_jax.batch.segmenters import Segmenter
    from sam_jax.models.sam import Sam

OPTIONS = ("text_model", "text_threshold", "masks_per_text")


def check(command: Any) -> None:
    """Raises ValueError where texts and other options contradict each other, or a text cannot be one."""
    from sam_jax.text.tokenizers import check_text

    if command.text and command.prompts:
        raise ValueError("--text does not go with --prompts; write the texts into that file")
    if not command.text and not command.prompts and (given := command.given(*OPTIONS)):
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} goes with --text, or with texts in --prompts")
    for text in command.text:
        check_text(text)
    if not command.text:
        return
    if not command.text_model:
        raise ValueError("--text needs --text-model DIR: CLIP or SigLIP 2, as `sam-jax convert from-clip` writes it")
    if command.mask_input:
        raise ValueError("--mask-input does not go with --text")
    if (command.point or command.box) and not is_one_image(command):
        raise ValueError("--point and --box with --text are for one image; write the prompts into a file for --prompts")
    if command.tile:
        raise ValueError("--tile does not go with --text: phrases are for what is seen whole")


def options(command: Any) -> TextOptions:
    """Which masks a text means."""
    return TextOptions(threshold=command.text_threshold, masks_per_phrase=command.masks_per_text)


def is_one_image(command: Any) -> bool:
    """Whether results of --text are those of one image: masks as PNGs, and an overlay."""
    if len(command.images) != 1 or command.format != "json" or command.distributed or command.num_hosts:
        return False
    (path,) = command.images
    return not path.startswith("@") and not any(sign in path for sign in "*?[") and not Path(path).is_dir()


def build_segmenter(command: Any, model: Sam, variables: Any, needs_texts: bool = True) -> Segmenter:
    """What finds the masks of texts: the model itself where it was trained with them, else the text model."""
    from sam_jax.batch.phrases import PhraseSegmenter
    from sam_jax.batch.segmenters import PromptedSegmenter
    from sam_jax.text.loading import load_towers
    from sam_jax.text.segmenter import TextSegmenter

    if not needs_texts:
        return PromptedSegmenter(model, variables)
    if not command.text_model:
        raise ValueError(f"{command.prompts} has texts, which need --text-model DIR: CLIP or SigLIP 2")
    towers = load_towers(command.text_model, "bfloat16" if command.dtype in ("bfloat16", "int8") else "float32")
    towers.tokenizer(command.text)  # says what is wrong with them before the work begins
    if model.config.text_embed_dim:
        return PromptedSegmenter(model, variables, towers)
    many = bool(command.prompts) or not is_one_image(command)
    more: dict[str, Any] = {"options": options(command), "progress": not many}
    return PhraseSegmenter(TextSegmenter(model, variables, towers, **more, **command.given_everything))


def objects(command: Any, given: ImagePrompts) -> list[ObjectPrompt]:
    """What is asked for in each image: each text by itself, or with the points and the box of the command line."""
    from sam_jax.batch.prompt_files import ObjectPrompt

    points = () if given.points is None else tuple((float(x), float(y)) for x, y in given.points)
    labels = () if given.labels is None else tuple(int(label) for label in given.labels)
    boxes = [None] if given.boxes is None else [tuple(map(float, box)) for box in given.boxes]
    return [ObjectPrompt(points, labels, box, text) for text in command.text for box in boxes]  # type: ignore[arg-type]


def table(command: Any, given: ImagePrompts) -> PromptTable:
    """The prompts of many images."""
    from sam_jax.batch.prompt_files import SamePrompts

    return SamePrompts(objects(command, given))


def segment_one(command: Any, given: ImagePrompts) -> None:
    """Segments one image by the texts of the command line, writes, and says so."""
    import sam_jax
    from sam_jax.batch import one_image
    from sam_jax.batch.prompt_files import ImageObjects

    (path,) = command.images
    wanted, image = ImageObjects(tuple(objects(command, given))), sam_jax.read_image(path)
    loaded = sam_jax.load_model(command.checkpoint, command.dtype, command.edge_refinement)
    segmenter = build_segmenter(command, *loaded)
    start = time.perf_counter()
    records = segmenter.records(segmenter.find(image, wanted), image.shape[:2])
    seconds = time.perf_counter() - start
    overlay = one_image.write_phrase_results(command.out, path, image, records)
    h, w = image.shape[:2]
    print(f"{path} ({w}x{h}): {len(records)} masks in {seconds:.1f} s")
    for text in dict.fromkeys(command.text):
        print(f"  {text}: {_scores([record for record in records if record['text'] == text])}")
    print(f"wrote {overlay}, with {overlay.stem.removesuffix('.overlay')}.masks.json and a PNG per mask beside it")


def _scores(records: Sequence[dict[str, Any]]) -> str:
    if not records:
        return "nothing; more pass with a lower --text-threshold"
    return "score " + ", ".join(f"{record['score']:.2f}" for record in records)


def result_settings(command: Any) -> dict[str, Any]:
    """All that results of texts depend on besides the model; empty without a text model."""
    if not command.text_model:
        return {}
    return {"text_model": command.text_model, **command.given("text_threshold", "masks_per_text")}
