"""`sam-jax evaluate`: scores a model's masks on labelled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from sam_jax.cli import parsing


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a model with the SAM paper's interactive protocol, and write a report.

    Examples:
        sam-jax evaluate data/my_images --checkpoint checkpoints/sam_vit_b --out report/
        sam-jax evaluate coco/instances_val2017.json --text --text-model checkpoints/clip_vit_b_32 --limit 500
        sam-jax evaluate --set ADE20K=data/ADE20K_2021_17_01 --set OVIS=data/ovis --max-masks 10000

    DATA is SA-1B tars or a folder of .jpg + .json pairs, a COCO or LVIS .json, or a directory with images/ and labels/
    (a PNG of object numbers per image). --set reads one of the paper's 23 sets as published; --list-sets prints the
    expected layouts.

    Written to --out: report.html (charts, and the best, median and worst cases as images) and report.json; with
    --text, where names of categories are the prompts, text.json.
    """

    data: Annotated[Positional[tuple[str, ...]], arg(metavar="DATA", help="labelled images; local or gs://")] = ()
    set: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="NAME=PATH", help="one of the paper's sets, as published")
    ] = ()
    list_sets: Annotated[bool, arg(help="describe the paper's sets and stop")] = False
    images: Annotated[str | None, arg(metavar="DIR", help="directory of images of COCO or LVIS files in DATA")] = None
    checkpoint: parsing.Checkpoint = None
    dtype: parsing.Dtype = None
    crf: parsing.Crf = False
    no_crf: parsing.NoCrf = False
    out: Annotated[str, arg(metavar="DIR", help="directory for the report")] = "report"
    clicks: Annotated[tuple[int, ...], arg(help="numbers of clicks after which masks are scored")] = (1, 2, 3, 5, 9)
    no_boxes: Annotated[bool, arg(help="do not score box prompts")] = False
    text: Annotated[bool, arg(help="score phrases, the names of categories, instead of clicks and boxes")] = False
    text_model: Annotated[
        str | None, arg(metavar="DIR", help="CLIP or SigLIP 2, as written by `sam-jax convert from-clip`")
    ] = None
    floors: Annotated[bool, arg(help="also score baselines without learning")] = False
    groups: Annotated[
        str | None, arg(metavar="FILE", help="CSV of image,[mask,]attribute,...: also score by group")
    ] = None
    limit: Annotated[int | None, arg(help="maximum number of images per set, drawn at random")] = None
    max_masks: Annotated[int | None, arg(help="draw images of each set at random up to this number of masks")] = None
    seed: Annotated[int, arg(help="random seed of the images drawn and of the bootstrap")] = 0
    images_per_batch: Annotated[int, arg(help="images per call of the encoder; more take memory and save time")] = 4
    prompts_per_batch: Annotated[int, arg(help="objects per call of the decoder; likewise")] = 32

    def run(self) -> None:
        """Evaluates, prints and writes."""
        from sam_jax.checkpoint import load_model, model_path
        from sam_jax.evaluation.groups import read_attributes
        from sam_jax.evaluation.options import EvaluationOptions
        from sam_jax.evaluation.run import evaluate_sets, list_paper_sets, open_sets
        from sam_jax.runtime import use_compilation_cache

        if self.list_sets:
            list_paper_sets()
            return
        if self.text or self.text_model:
            self._run_text()
            return
        refinement = parsing.edge_refinement(self.crf, self.no_crf)
        options = EvaluationOptions(
            clicks=self.clicks,
            boxes=not self.no_boxes,
            limit=self.limit,
            max_masks=self.max_masks,
            seed=self.seed,
            images_per_batch=self.images_per_batch,
            prompts_per_batch=self.prompts_per_batch,
        )
        use_compilation_cache()
        sets = open_sets(self.data, self.set, self.images)
        attributes = None if self.groups is None else read_attributes(self.groups)
        model, variables = load_model(self.checkpoint, self.dtype, refinement)
        said = {name: getattr(self, name) for name in ("limit", "max_masks", "seed", "dtype")}
        about = {
            "checkpoint": str(self.checkpoint or model_path(None).name),
            "options": said | {"crf": refinement},
        }
        evaluate_sets(model, variables, sets, options, about, self.out, self.floors, attributes)

    def _run_text(self) -> None:
        """The same of phrases."""
        from sam_jax.checkpoint import load_model, model_path
        from sam_jax.evaluation import phrases
        from sam_jax.runtime import use_compilation_cache
        from sam_jax.text.loading import load_towers

        if not (self.text and self.text_model):
            raise ValueError("--text and --text-model DIR go together: phrases need CLIP or SigLIP 2")
        if len(self.data) != 1 or not self.data[0].endswith(".json") or self.set:
            raise ValueError("--text needs one COCO or LVIS .json file, whose categories are the phrases")
        use_compilation_cache()
        images = phrases.CategorySet(self.data[0], self.images)
        refinement = parsing.edge_refinement(self.crf, self.no_crf)
        find = phrases.finder(*load_model(self.checkpoint, self.dtype, refinement), load_towers(self.text_model))
        scores = phrases.evaluate_phrases(find, images, self.limit, self.seed, progress=True)
        about = {"data": self.data[0], "checkpoint": str(self.checkpoint or model_path(None).name)}
        print(scores.table())
        print(f"\nwrote {phrases.write_phrases(self.out, scores, about | {'text_model': self.text_model})}")


def main(argv: Sequence[str] | None = None, program: str = "sam-jax evaluate") -> int:
    """Runs the command; bad input ends in one line on stderr and exit code 2."""
    command = parsing.parse(Evaluate, program, argv)
    return parsing.run(program, command.run)
