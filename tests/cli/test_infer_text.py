"""`infer.py --text`: one image and many, prompt files, a model trained with texts, and one line for each mistake."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import infer
from sam_jax.checkpoint import save_model
from sam_jax.ops.rle import decode_mask
from tests.tiny import SMALLEST, random_variables
from tests.tiny_towers import save_colour_towers

LOOSE = ("--pred-iou-thresh", -100, "--stability-score-thresh", 0, "--points-per-side", 2, "--text-threshold", 0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories: a model without texts, one with, and towers."""
    folder = tmp_path_factory.mktemp("models")
    knowing = dataclasses.replace(SMALLEST, text_embed_dim=20)
    save_model(folder / "sam", SMALLEST, random_variables(SMALLEST))
    save_model(folder / "knowing", knowing, random_variables(knowing))
    save_colour_towers(folder / "towers")
    return folder


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("one.png", "two.png"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "images" / name)
    return tmp_path / "images"


@pytest.fixture
def run(models, tmp_path, monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr), with results in tmp_path / "out"."""
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)  # each device compiles for itself, which takes time

    def call(*arguments, model="sam", text_model=True):
        options = ["--checkpoint", models / model, "--out", tmp_path / "out"]
        options += ["--text-model", models / "towers"] if text_model else []
        monkeypatch.setattr(sys, "argv", ["infer.py", *map(str, [*arguments, *options])])
        code = infer.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.long
def test_one_image(run, images, tmp_path):
    code, out, err = run(images / "one.png", "--text", "a red ball", "--text", "the dog", *LOOSE)
    assert code == 0, err
    content = json.loads((tmp_path / "out" / "one.masks.json").read_text())
    records = content["annotations"]
    assert {record["text"] for record in records} == {"a red ball", "the dog"}
    assert f"{len(records)} masks in" in out
    assert "  a red ball: score " in out
    for index, record in enumerate(records):
        assert 0 <= record["score"] <= 1
        with Image.open(tmp_path / "out" / f"one.mask_{index}.png") as image:
            np.testing.assert_array_equal(np.asarray(image) > 0, decode_mask(record["segmentation"]))
    with Image.open(tmp_path / "out" / "one.overlay.jpg") as overlay:
        assert overlay.size == (60, 40)


def test_nothing_that_is_like_enough(run, images, tmp_path):
    code, out, _ = run(images / "one.png", "--text", "a dog", *LOOSE[:-2], "--text-threshold", 0.999)
    assert code == 0
    assert "a dog: nothing; more pass with a lower --text-threshold" in out
    assert json.loads((tmp_path / "out" / "one.masks.json").read_text())["annotations"] == []


def test_the_same_phrases_in_many_images(run, images, tmp_path):
    words = [images, "--text", "a red ball", "--text", "the dog", "--masks-per-text", 1, "--format", "overlay,coco"]
    code, out, err = run(*words, *LOOSE)
    assert code == 0, err
    for name in ("one", "two"):
        records = json.loads((tmp_path / "out" / f"{name}.json").read_text())["annotations"]
        assert [record["text"] for record in records] == ["a red ball", "the dog"]
        assert (tmp_path / "out" / f"{name}.overlay.jpg").exists()
    results = json.loads((tmp_path / "out" / "coco_results.json").read_text())
    assert [result["text"] for result in results] == ["a red ball", "the dog"] * 2
    code, out, _ = run(*words, *LOOSE)
    assert "already finished: 2" in out
    code, out, _ = run(*words[:1], "--text", "the dog", *words[5:], *LOOSE)
    assert "2 images done" in out


def test_texts_in_prompt_files(run, images, tmp_path):
    prompts = {
        "one.png": [{"box": [5, 5, 30, 30]}, {"text": "blue", "box": [5, 5, 30, 30]}, {"text": "green"}],
        "two.png": [{"points": [[20, 20]], "category_id": 3}, {"text": "red", "score": 0.25, "points": [[20, 20]]}],
    }
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    code, _, err = run(images, "--prompts", tmp_path / "prompts.json", "--masks-per-text", 1, *LOOSE)
    assert code == 0, err
    one, two = (json.loads((tmp_path / "out" / f"{n}.json").read_text())["annotations"] for n in ("one", "two"))
    assert [record.get("text") for record in one] == [None, "blue", "green"]
    assert one[0]["segmentation"] == one[1]["segmentation"]
    assert 0 <= one[1]["score"] <= 1
    assert [record.get("text") for record in two] == [None, "red"]
    assert (two[0]["category_id"], two[1]["score"]) == (3, 0.25)
    code, _, err = run(images, "--prompts", tmp_path / "prompts.json", text_model=False)
    assert code == 2
    assert "prompts.json has texts, which need --text-model DIR" in err


def test_a_model_trained_with_texts_takes_them_as_prompts(run, images, tmp_path):
    code, _, err = run(images / "one.png", "--text", "red", "--text", "blue", model="knowing")
    assert code == 0, err
    both = json.loads((tmp_path / "out" / "one.masks.json").read_text())["annotations"]
    assert [record["text"] for record in both] == ["red", "blue"]
    assert both[0]["segmentation"] != both[1]["segmentation"]
    assert both[0]["score"] == both[0]["predicted_iou"]
    code, _, err = run(images / "one.png", "--text", "red", "--point", "20,20", "--box", "5,5,30,30", model="knowing")
    assert code == 0, err
    (record,) = json.loads((tmp_path / "out" / "one.masks.json").read_text())["annotations"]
    assert (record["point_coords"], record["box"]) == ([[20, 20]], [5, 5, 30, 30])
    assert record["segmentation"] != both[0]["segmentation"]


@pytest.mark.parametrize(
    ("words", "text_model", "message"),
    [
        (["--text", ""], True, "text '' is empty; expected a phrase such as 'a dog'"),
        (["--text", "x" * 10_000], True, "has 10,000 characters; expected a phrase of at most 1,000"),
        (["--text", "a dog " * 8], True, "has 16 tokens, and the text tower reads 14; shorten it"),
        (["--text", "ሰላም"], True, "no word of text 'ሰላም' is in the vocabulary of the text tower"),
        (["--text", "a dog"], False, "--text needs --text-model DIR"),
        (["--text", "a dog", "--prompts", "p.json"], True, "--text does not go with --prompts"),
        (["--text", "a dog", "--mask-input", "m.npy"], True, "--mask-input does not go with --text"),
        (["--text", "a dog", "--tile", "512"], True, "--tile does not go with --text"),
        (
            ["--text", "a dog", "--box", "1,2,3,4", "--format", "png"],
            True,
            "--point and --box with --text are for one image",
        ),
        ([], True, "--text-model goes with --text, or with texts in --prompts"),
        (["--text", "a dog", "--text-threshold", "7"], True, "threshold must be from -1 to 1, not 7"),
    ],
)
def test_mistakes_get_one_line(run, images, words, text_model, message):
    code, _, err = run(images / "one.png", *words, text_model=text_model)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_what_is_no_text_model(run, images, models):
    code, _, err = run(images / "one.png", "--text", "a dog", "--text-model", models / "sam", text_model=False)
    assert code == 2
    assert "is no config of towers (its format is 'sam_jax.model.v1'" in err
    code, _, err = run(images / "one.png", "--text", "a dog", "--text-model", models / "none", text_model=False)
    assert code == 2
    assert "does not exist; expected a directory written by `sam-jax convert from-clip`" in err
