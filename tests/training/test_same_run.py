import dataclasses
import json

import pytest

from sam_jax.config import FinetuneConfig, RecordDataConfig, StageConfig, TrainConfig, to_dict
from sam_jax.training.same_run import FREE_TO_CHANGE, PLACES_OF_CACHES, PLACES_OF_DATA, check_same_run
from tests.tiny import SMALLEST

CONFIG = TrainConfig(
    sam=SMALLEST,
    stages=(StageConfig(48, 8, 2, num_steps=5), StageConfig(48, 8, 2, num_steps=2)),
    finetune=FinetuneConfig(frozen=("prompt_encoder/.*",)),
    data=RecordDataConfig("data", hold_out=0.3),
)


def here(**fields):
    return lambda: {"images": 3, "ids": "a", **fields}


@pytest.fixture
def workdir(tmp_path):
    check_same_run(CONFIG, tmp_path, here())
    (tmp_path / "state" / "2").mkdir(parents=True)
    return tmp_path


def changed(**parts):
    return dataclasses.replace(CONFIG, **parts)


def test_names_that_may_change_are_fields():
    def names(values, prefix=""):
        for name, value in values.items():
            yield f"{prefix}{name}"
            if isinstance(value, dict):
                yield from names(value, f"{prefix}{name}.")

    known = set(names(to_dict(CONFIG))) | {"data.pool", "data.buffer_gib"}
    assert known >= FREE_TO_CHANGE | PLACES_OF_DATA | PLACES_OF_CACHES


@pytest.mark.parametrize("finished", [False, True], ids=["unfinished", "finished"])
def test_what_changes_the_curve_is_refused_with_both_values(workdir, finished):
    if finished:
        (workdir / "model").mkdir()
    check_same_run(CONFIG, workdir, here())
    for config, message in (
        (changed(seed=1), "seed: 0 -> 1"),
        (
            changed(stages=(CONFIG.stages[0], dataclasses.replace(CONFIG.stages[1], num_steps=3))),
            "stages.1.num_steps: 2",
        ),
        (changed(data=dataclasses.replace(CONFIG.data, hold_out=0.5)), "data.hold_out: 0.3 -> 0.5"),
        (changed(finetune=dataclasses.replace(CONFIG.finetune, lora_rank=2)), "finetune.lora_rank: 0 -> 2"),
        (changed(finetune=FinetuneConfig(frozen=("x",))), r"finetune\.frozen\.0: 'prompt_encoder/\.\*' -> 'x'"),
        (changed(finetune=FinetuneConfig()), r"finetune\.frozen: \['prompt_encoder/\.\*'\] -> \[\]"),
    ):
        with pytest.raises(ValueError, match=f"holds {'a finished run' if finished else 'a run'} .*{message}"):
            check_same_run(config, workdir, here())


def test_a_run_without_a_checkpoint_is_begun_anew(workdir):
    """Such as one whose `init_from` was refused: the corrected command is the same command."""
    (workdir / "state" / "2").rmdir()
    check_same_run(changed(seed=1), workdir, here(ids="b"))
    (workdir / "state" / "2").mkdir()
    check_same_run(changed(seed=1), workdir, here(ids="b"))
    with pytest.raises(ValueError, match="seed: 1 -> 0"):
        check_same_run(CONFIG, workdir, here())


def test_what_cannot_change_the_curve_may(workdir):
    data = dataclasses.replace(CONFIG.data, num_workers=7, prefetch=3)
    encoder = dataclasses.replace(SMALLEST.image_encoder, remat=not SMALLEST.image_encoder.remat)
    sam = dataclasses.replace(SMALLEST, image_encoder=encoder)
    check_same_run(changed(data=data, sam=sam, eval_images=9, storage_dtype="float16"), workdir, here())


def test_data_may_move_but_not_change(workdir):
    moved = changed(data=dataclasses.replace(CONFIG.data, path="elsewhere"))
    check_same_run(moved, workdir, here())
    with pytest.raises(ValueError, match=r"data\.path: 'data' -> 'elsewhere'; data images: 3 -> 4"):
        check_same_run(moved, workdir, here(images=4))
    with pytest.raises(ValueError, match="data ids: 'a' -> 'b'"):
        check_same_run(CONFIG, workdir, here(ids="b"))
    (workdir / "model").mkdir()
    with pytest.raises(ValueError, match=r"finished run .*data images: 3 -> 4"):
        check_same_run(moved, workdir, here(images=4))
    check_same_run(CONFIG, workdir, here(images=4))  # a finished run needs its data no more


def test_a_run_from_before_scaled_decode_was_an_option_had_it(workdir):
    old = json.loads((workdir / "config.json").read_text())
    del old["data"]["scaled_decode"]
    (workdir / "config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"data\.scaled_decode: True -> False"):
        check_same_run(CONFIG, workdir, here())
    check_same_run(changed(data=dataclasses.replace(CONFIG.data, scaled_decode=True)), workdir, here())


def test_a_run_of_an_earlier_version_goes_on(workdir):
    """Its config lacks fields that are younger, and nobody noted its data."""
    (workdir / "data.json").unlink()
    old = json.loads((workdir / "config.json").read_text())
    del old["storage_dtype"], old["stages"][1]["mosaics"], old["sam"]["mask_decoder"]["dropout_rate"]
    (workdir / "config.json").write_text(json.dumps(old))
    decoder = dataclasses.replace(SMALLEST.mask_decoder, dropout_rate=0.1)
    with pytest.raises(ValueError, match=r"sam\.mask_decoder\.dropout_rate: 0\.0 -> 0\.1"):
        check_same_run(changed(sam=dataclasses.replace(SMALLEST, mask_decoder=decoder)), workdir, here())
    moved = changed(data=dataclasses.replace(CONFIG.data, path="elsewhere"))
    with pytest.raises(ValueError, match=r"data\.path: 'data' -> 'elsewhere'"):
        check_same_run(moved, workdir, here())
    check_same_run(CONFIG, workdir, here())
    check_same_run(moved, workdir, here())  # now it is noted


def test_a_run_with_a_field_of_a_former_name_goes_on(workdir):
    file = workdir / "config.json"
    theirs = json.loads(file.read_text())
    theirs["picture_every"] = theirs.pop("overlay_every") + 5
    file.write_text(json.dumps(theirs))
    check_same_run(CONFIG, workdir, here())
