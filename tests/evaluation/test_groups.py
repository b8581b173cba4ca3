"""Scores by group on scores that are known, and the command."""

import json
import re

import numpy as np
import pytest
from scipy import stats

from sam_jax.cli.evaluate import main
from sam_jax.data.records import DataError
from sam_jax.evaluation.groups import read_attributes, score_groups
from sam_jax.evaluation.report.group_tables import difference_rows, group_chart, group_rows, group_text
from sam_jax.evaluation.results import EvaluationResult
from tests.tiny_sa1b import write_folder

COLUMNS = ("1 click", "3 clicks")


def table(tmp_path, text):
    path = tmp_path / "attributes.csv"
    path.write_text(text)
    return read_attributes(path)


def result(iou, image_of, mask_of):
    """Of so many images, at one click and at three."""
    iou, image_of = np.array(iou, float), np.array(image_of)
    images = int(image_of.max()) + 1
    return EvaluationResult(
        name="set",
        columns=COLUMNS,
        images=tuple(map(str, range(images))),
        indices=np.arange(images),
        image_of=image_of,
        mask_of=np.array(mask_of),
        areas=np.ones(len(iou), int),
        iou=iou,
        boundary_iou=iou,
        predicted_iou=iou,
        clicks=np.zeros((len(iou), 3, 3), int),
    )


def test_means_by_image_and_by_mask(tmp_path):
    """Image 0 has a mask of each gender; images 1 and 2 have one mask; 3 is in no group of gender."""
    attributes = table(
        tmp_path,
        "image,mask,gender,region\nsa_10.jpg,0,f,Europe\nsa_10.jpg,1,m,Europe\nsa_11,,f,Asia\n12,,m,Asia\n13,,,Asia\n",
    )
    attributes.check(["10", "11", "12", "13"])
    scored = result([[0.1, 0.5], [0.2, 0.6], [0.3, 0.7], [0.4, 0.8], [0.5, 0.9]], [0, 0, 1, 2, 3], [0, 1, 0, 0, 0])
    found = score_groups(scored, ["10", "11", "12", "13"], attributes)
    gender, region = found["attributes"]["gender"], found["attributes"]["region"]
    assert (gender["f"]["masks"], gender["f"]["images"]) == (2, 2)
    assert gender["f"]["1 click"]["mean"] == pytest.approx(0.2)
    assert gender["m"]["3 clicks"]["mean"] == pytest.approx(0.7)
    assert region["Europe"]["1 click"]["mean"] == pytest.approx(0.15)
    assert region["Asia"]["1 click"]["mean"] == pytest.approx(0.4)
    low, high = gender["f"]["1 click"]["interval"]
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.3))
    assert any(line.startswith("gender f: only 2 images") for line in found["warnings"])
    differences = {(one["attribute"], one["column"]): one for one in found["differences"]}
    assert differences["gender", "1 click"]["difference"] == pytest.approx(-0.1)
    assert differences["region", "3 clicks"]["p"] is None  # Europe has one image


def many(tmp_path, shift):
    """60 images, a mask each, of two groups that differ by so much at one click, and not at all at three."""
    rng = np.random.default_rng(1)
    names = [str(number) for number in range(60)]
    rows = "".join(f"{name},{'ab'[number % 2]},{number % 3}\n" for number, name in enumerate(names))
    iou = rng.normal(0.5, 0.1, (60, 2))
    iou[::2, 0] += shift
    return score_groups(
        result(iou, np.arange(60), np.zeros(60)), names, table(tmp_path, "image,kind,other\n" + rows)
    ), iou


def test_differences_are_found_and_corrected(tmp_path):
    found, iou = many(tmp_path, 0.2)
    significant = [(one["attribute"], one["column"]) for one in found["differences"] if one["significant"]]
    assert significant == [("kind", "1 click")]
    assert len(found["differences"]) == 2 + 3 * 2
    one = found["differences"][0]
    assert one["p"] == pytest.approx(stats.ttest_ind(iou[::2, 0], iou[1::2, 0], equal_var=False).pvalue)
    assert one["corrected_p"] == pytest.approx(8 * one["p"])  # the smallest of eight
    assert all(one["corrected_p"] >= one["p"] for one in found["differences"])
    assert not found["warnings"] or all("other" in line for line in found["warnings"])


def test_equal_groups_do_not_differ(tmp_path):
    found, _ = many(tmp_path, 0.0)
    assert not any(one["significant"] for one in found["differences"])


def test_tables(tmp_path):
    found, _ = many(tmp_path, 0.2)
    assert group_rows(found)[0] == ["group", "masks", "images", "1 click", "3 clicks"]
    assert [row[0] for row in group_rows(found)[1:]] == ["kind: a", "kind: b", "other: 0", "other: 1", "other: 2"]
    assert difference_rows(found)[1][-1] == "differ"
    assert "mean IoU by group" in group_text(found)
    assert group_chart(found).count("<circle") == 2 * 5 + 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,group\na,1\n", "expected CSV with a column 'image'"),
        ("image\na\n", "expected CSV with a column 'image'"),
        ("image,mask,group\na,first,1\n", "line 2: mask is 'first'; expected its number"),
        ("image,group\na,1\na,2\n", "line 3: 'a' is there twice"),
        ("", "expected CSV"),
    ],
)
def test_tables_that_are_none(tmp_path, text, message):
    with pytest.raises(DataError, match=re.escape(message)):
        table(tmp_path, text)


def test_unknown_images_and_masks(tmp_path):
    attributes = table(tmp_path, "image,mask,group\n10,5,a\n")
    with pytest.raises(DataError, match="no image is called '10'; expected names such as 'x'"):
        attributes.check(["x"])
    with pytest.raises(DataError, match="'10' has no mask 5; it has 1, counted from 0"):
        score_groups(result([[0.1, 0.5]], [0], [0]), ["10"], attributes)
    with pytest.raises(DataError, match="cannot be read"):
        read_attributes(tmp_path / "missing.csv")


@pytest.mark.long
def test_the_command(checkpoint, tmp_path, capsys):
    data = write_folder(tmp_path / "data", 3)
    names = sorted(path.stem for path in data.glob("*.jpg"))
    csv = tmp_path / "attributes.csv"
    csv.write_text("image,region\n" + "".join(f"{name},{'ab'[n % 2]}\n" for n, name in enumerate(names)))
    words = [data, "--checkpoint", checkpoint, "--out", tmp_path / "out", "--groups", csv, "--no-boxes", "--clicks"]
    assert main([*map(str, words), "1", "3"]) == 0
    out = capsys.readouterr().out
    assert "region: a" in out
    assert "warning: region a: only 2 images" in out
    groups = json.loads((tmp_path / "out/report.json").read_text())["sets"]["data"]["groups"]
    assert groups["attributes"]["region"]["a"]["images"] == 2
    assert "data: groups</h2>" in (tmp_path / "out/report.html").read_text()
    assert main([*map(str, words), "2"]) == 2
    assert "--groups compares scores at 1 and 3 clicks" in capsys.readouterr().err
    csv.write_text("image,region\nnobody,a\n")
    assert main([*map(str, words), "1"]) == 2
    assert "no image is called 'nobody'" in capsys.readouterr().err
