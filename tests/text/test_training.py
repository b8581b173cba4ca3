"""Training with text prompts: what a step is given, what is kept on disk, and, as a long test, a tiny SAM that learns
to find shapes by their names although it has never seen a text."""

import dataclasses

import jax
import numpy as np
import pytest

from sam_jax.checkpoint import load_config, load_model, load_variables, save_model
from sam_jax.config import (
    FinetuneConfig,
    ImageEncoderConfig,
    InteractionConfig,
    MaskDecoderConfig,
    OptimConfig,
    RecordDataConfig,
    SamConfig,
    StageConfig,
    TextPromptConfig,
    TrainConfig,
)
from sam_jax.convert.errors import ConversionError
from sam_jax.convert.flax_to_torch import convert
from sam_jax.data.coco import CocoInstances
from sam_jax.data.record_examples import ExampleMaker
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam, init_variables
from sam_jax.structs import Prompts
from sam_jax.text.loading import load_towers
from sam_jax.training import loop
from sam_jax.training.prompts import first_prompts, is_ambiguous
from sam_jax.training.text_prompts import with_text_prompts
from tests.text.toy_shapes import CLIP, DOT, NAMES, SIDE, draw_scene, train_clip, write_coco
from tests.tiny import SMALLEST, TINY, random_embeddings, random_variables
from tests.tiny_towers import TINY_CLIP, save_colour_towers

KNOWING = dataclasses.replace(TINY, text_embed_dim=20)


@pytest.fixture
def data(tmp_path):
    """Six scenes as a COCO file, and towers that know colours."""
    rng = np.random.default_rng(0)
    save_colour_towers(tmp_path / "towers")
    return write_coco(tmp_path / "coco", [draw_scene(rng) for _ in range(6)]), tmp_path


def training(data, **changes):
    path, folder = data
    text = TextPromptConfig(towers=str(folder / "towers"), cache=str(folder / "cache"), looks=3, min_area=300)
    config = TrainConfig(
        sam=dataclasses.replace(SMALLEST, text_embed_dim=20),
        stages=(StageConfig(image_size=96, batch_size=8, masks_per_image=3, num_steps=2),),
        data=RecordDataConfig(path=str(path), hold_out=0.3),
        interaction=InteractionConfig(num_points=1, num_mask_only_steps=0),
        text=text,
        workdir=str(folder / "run"),
    )
    return dataclasses.replace(config, **changes)


def test_parameters_are_there_with_texts_alone():
    def names(config):
        return set(jax.eval_shape(lambda: init_variables(Sam(config), jax.random.key(0)))["params"]["prompt_encoder"])

    assert names(KNOWING) - names(TINY) == {"text_projection"}


def decode(prompts, config=KNOWING):
    model, variables = Sam(config), random_variables(config)
    return model.apply(variables, random_embeddings(0), prompts, method="predict_masks").low_res_masks


@pytest.mark.slow
def test_texts_are_prompts_of_their_own_and_beside_others():
    rng = np.random.default_rng(0)
    texts = rng.standard_normal((1, 2, 20)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
    boxes = np.array([[[5.0, 5, 60, 60], [5, 5, 60, 60]]])
    alone, box, both = (
        decode(Prompts(**parts))
        for parts in ({"text_embeddings": texts}, {"boxes": boxes}, {"text_embeddings": texts, "boxes": boxes})
    )
    assert not np.allclose(alone[:, 0], alone[:, 1], atol=1e-3)
    np.testing.assert_allclose(box[:, 0], box[:, 1], atol=1e-4)
    assert not np.allclose(both[:, 0], both[:, 1], atol=1e-3)
    # A text whose flag is False takes no part.
    off = decode(Prompts(text_embeddings=texts, text_valid=np.array([[False, True]]), boxes=boxes))
    np.testing.assert_allclose(off[:, 0], box[:, 0], atol=1e-4)
    np.testing.assert_allclose(off[:, 1], both[:, 1], atol=1e-4)


def test_texts_of_another_width_or_for_another_model_are_refused():
    texts = np.ones((1, 1, 7), np.float32)
    with pytest.raises(ValueError, match="text_embeddings are 7 wide; this model was trained with 20"):
        decode(Prompts(text_embeddings=texts))
    with pytest.raises(ValueError, match=r"this model has no text prompts \(SamConfig\.text_embed_dim is 0\)"):
        decode(Prompts(text_embeddings=texts), TINY)
    predictor = SamPredictor(Sam(TINY), random_variables(TINY))
    predictor.set_image(np.zeros((40, 60, 3), np.uint8))
    with pytest.raises(ValueError, match=r"not trained with text prompts .*sam_jax\.TextSegmenter finds"):
        predictor.predict(text_embedding=texts[0, 0])
    knowing = SamPredictor(Sam(KNOWING), random_variables(KNOWING))
    knowing.set_image(np.zeros((40, 60, 3), np.uint8))
    with pytest.raises(ValueError, match=r"text_embeddings have shape \(1, 7\); expected \(N, 20\)"):
        knowing.predict(text_embedding=texts[0, 0])
    with pytest.raises(ValueError, match="a text embedding is zero or not finite"):
        knowing.predict(text_embedding=np.zeros(20))
    assert knowing.predict(text_embedding=np.ones(20)).masks.shape == (3, 40, 60)


@pytest.mark.parametrize(("probability", "alone"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.0), (0.5, 0.5)])
def test_first_prompts_hold_texts_as_often_as_asked(probability, alone):
    config = InteractionConfig(text_probability=probability, text_alone=alone, box_probability=0.5)
    targets = np.ones((40, 25, 4, 4), bool)
    prompts = first_prompts(config, jax.random.key(0), targets, np.ones((40, 25, 6), np.float32))
    has_text = np.asarray(prompts.text_valid)
    has_other = np.asarray(prompts.box_valid | (prompts.point_labels >= 0).any(axis=-1))
    assert has_text.mean() == pytest.approx(probability, abs=0.05)
    assert (has_text | has_other).all()
    assert (has_text & ~has_other).mean() == pytest.approx(probability * alone, abs=0.05)
    several = has_text & has_other
    np.testing.assert_array_equal(is_ambiguous(config, prompts), ~several & ~np.asarray(prompts.box_valid))
    without = first_prompts(config, jax.random.key(0), targets)
    np.testing.assert_array_equal(without.boxes, prompts.boxes)
    assert without.text_embeddings is None


def test_embeddings_are_computed_once_and_known_by_content(data, capsys):
    config, source = training(data), CocoInstances(data[0])
    records = with_text_prompts(config, source)
    (directory,) = (data[1] / "cache").iterdir()
    files = {file: file.read_bytes() for file in directory.iterdir()}
    assert len(files) == 6
    record = records[0]
    assert len(source[0].segmentations) == 6
    assert len(record.segmentations) == 3  # dots are smaller than 300 pixels
    assert record.text_embeddings.shape == (3, 3, 20)
    np.testing.assert_allclose(np.linalg.norm(record.text_embeddings, axis=-1), 1, atol=2e-3)
    assert not np.allclose(record.text_embeddings[0, 0], record.text_embeddings[0, 1], atol=1e-4)
    for file in files:
        file.touch()
    times = {file: file.stat().st_mtime_ns for file in files}
    with_text_prompts(config, source)
    assert {file: file.stat().st_mtime_ns for file in files} == times
    next(iter(files)).unlink()  # it goes on with what is missing, and makes the same of it
    with_text_prompts(config, source)
    assert {file: file.read_bytes() for file in files} == files
    other = dataclasses.replace(config, text=dataclasses.replace(config.text, max_enlarge=1.0))
    with_text_prompts(other, source)
    assert len(list((data[1] / "cache").iterdir())) == 2


def test_examples_carry_the_embedding_of_each_of_their_masks(data):
    records = with_text_prompts(training(data), CocoInstances(data[0]))
    maker = ExampleMaker(96, 2, seed=0)
    towers, record = load_towers(data[1] / "towers"), records[0]
    drawn = [maker(i, record) for i in range(8)]
    assert {example.text_embeddings.shape for example in drawn} == {(2, 20)}
    known = record.text_embeddings.reshape(-1, 20)
    for example in drawn:
        for mask, text in zip(example.masks, example.text_embeddings, strict=True):
            owner = np.abs(known - text).max(axis=1).argmin() // 3
            full = ExampleMaker(96, 9).make(
                dataclasses.replace(
                    record, segmentations=record.segmentations[owner : owner + 1], text_embeddings=None
                ),
                np.random.default_rng(0),
            )
            np.testing.assert_array_equal(mask, full.masks[0])
    assert len(np.unique(np.concatenate([example.text_embeddings for example in drawn]).round(5), axis=0)) > 4
    assert towers.config == TINY_CLIP


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sam": SMALLEST}, r"text\.towers .* and sam\.text_embed_dim 0 go together: give both, or None and 0"),
        ({"text": TextPromptConfig()}, r"text\.towers None and sam\.text_embed_dim 20 go together"),
    ],
)
def test_configs_that_contradict_themselves(data, changes, message):
    with pytest.raises(ValueError, match=message):
        training(data, **changes)


def test_towers_of_another_width_are_refused(data):
    config = training(data, sam=dataclasses.replace(SMALLEST, text_embed_dim=24))
    with pytest.raises(ValueError, match=r"has embeddings of 20, sam\.text_embed_dim is 24; give the towers' width"):
        with_text_prompts(config, CocoInstances(data[0]))


@pytest.mark.slow
def test_a_run_starts_from_a_model_without_texts(data):
    folder = data[1]
    save_model(folder / "sam", SMALLEST, random_variables(SMALLEST))
    frozen = FinetuneConfig(frozen=("image_encoder/.*", "mask_decoder/.*"))
    config = training(data, init_from=str(folder / "sam"), finetune=frozen)
    model = loop.train(config)
    assert load_config(model).text_embed_dim == 20
    shapes = jax.eval_shape(lambda: init_variables(Sam(config.sam), jax.random.key(0)))
    params = load_variables(model, shapes)["params"]
    before = random_variables(SMALLEST)["params"]
    jax.tree.map(np.testing.assert_array_equal, params["mask_decoder"], before["mask_decoder"])
    assert np.abs(params["prompt_encoder"]["text_projection"]["kernel"]).max() > 0
    with pytest.raises(ConversionError, match="a model with text prompts, for which the official code has no layer"):
        convert(str(model), str(folder / "back.pth"))


TOY = SamConfig(
    image_encoder=ImageEncoderConfig(
        image_size=SIDE, embed_dim=64, depth=3, num_heads=2, window_size=6, global_attn_indexes=(0, 1, 2)
    ),
    mask_decoder=MaskDecoderConfig(num_heads=2, mlp_dim=128, iou_head_hidden_dim=64),
    prompt_embed_dim=64,
    text_embed_dim=CLIP.embed_dim,
)


def toy_config(folder, path, steps):
    """A tiny SAM from nothing: half of the first prompts are texts alone, half have a click or a box as well."""
    return TrainConfig(
        sam=TOY,
        stages=(StageConfig(image_size=SIDE, batch_size=16, masks_per_image=6, num_steps=steps),),
        data=RecordDataConfig(path=str(path), hold_out=0.02),
        interaction=InteractionConfig(
            num_points=0, num_mask_only_steps=0, box_probability=0.1, text_probability=0.9, text_alone=0.5
        ),
        optim=OptimConfig(learning_rate=1e-3, weight_decay=0.01, warmup_steps=50, cosine=True, clip_norm=1.0),
        text=TextPromptConfig(str(folder / "clip"), str(folder / "cache"), looks=3, min_area=50),
        workdir=str(folder / "run"),
        log_every=50,
        checkpoint_every=10_000,
    )


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def best(predicted):
    return predicted.masks[predicted.iou_predictions.argmax()]


@pytest.mark.slow
def test_a_tiny_sam_finds_shapes_by_their_names(tmp_path, monkeypatch):
    """It is trained with embeddings of crops alone; names come from the text tower for the first time at the end."""
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    monkeypatch.setattr(jax, "devices", lambda *_: one)
    jax.config.update("jax_disable_most_optimizations", False)
    rng = np.random.default_rng(0)
    train_clip(tmp_path / "clip")
    path = write_coco(tmp_path / "coco", [draw_scene(rng) for _ in range(500)])
    model, variables = load_model(loop.train(toy_config(tmp_path, path, 900)))
    predictor = SamPredictor(model, variables)
    texts = dict(zip(NAMES, load_towers(tmp_path / "clip").embed_texts(NAMES), strict=True))
    rng, by_text = np.random.default_rng(1), []
    for _ in range(40):
        image, objects = draw_scene(rng)
        predictor.set_image(image)
        named = [(name, mask) for name, mask in objects if name != DOT]
        by_text += [iou(best(predictor.predict(text_embedding=texts[name])), mask) for name, mask in named]
    assert np.mean(by_text) > 0.8
    # Two of a kind, and a click on the dot of one: neither the name nor the click tells which mask is meant.
    scores = {"text": [], "click": [], "both": []}
    for _ in range(40):
        image, objects = draw_scene(rng, pair=True)
        predictor.set_image(image)
        (name, mask), dot = objects[0], objects[3][1]
        click = np.argwhere(dot).mean(axis=0)[None, ::-1], np.array([1])
        text = texts[name]
        scores["text"].append(iou(best(predictor.predict(text_embedding=text)), mask))
        scores["click"].append(iou(best(predictor.predict(*click)), mask))
        both = predictor.predict(*click, multimask_output=False, text_embedding=text)
        scores["both"].append(iou(both.masks[0], mask))
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    assert means["both"] > max(means["text"], means["click"]) + 0.1, means
