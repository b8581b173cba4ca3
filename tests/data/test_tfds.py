"""Tars in the manner of SA-1B, prepared as tensorflow-datasets' segment_anything and read again."""

import io
import json
import logging
import os
import pickle
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sam_jax.cli import data as command_line
from sam_jax.data.records import DataError
from sam_jax.data.tfds import TfdsSa1b, layout, prepared_directory, preparing, reading
from sam_jax.data.tfds.preparing import make_plan, normalise_box, prepare_tars

# tensorflow-datasets asks protobuf's C code for deprecated attributes; as errors those turn up anywhere.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
HEIGHT, WIDTH = 30, 40
COUNTS = (5, 3, 4)  # images in each tar


def _document(image_id, masks):
    annotations = []
    for number in range(masks):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        mask[2 + number : 12, 3:20] = 1
        counts = coco_mask.encode(mask)["counts"].decode()
        annotations.append(
            {
                "id": 10 * image_id + number,
                "area": int(mask.sum()),
                "bbox": [3.0, 2.0 + number, 16.0, 9.0 - number],
                "crop_box": [0.0, 0.0, float(WIDTH), float(HEIGHT)],
                "point_coords": [[10.5, 8.25]],
                "predicted_iou": 0.9375,
                "stability_score": 0.953125,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts},
            }
        )
    image = {"image_id": image_id, "width": WIDTH, "height": HEIGHT, "file_name": f"sa_{image_id}.jpg"}
    return {"image": image, "annotations": annotations}


def _jpeg(image_id):
    buffer = io.BytesIO()
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), image_id, np.uint8)).save(buffer, "jpeg")
    return buffer.getvalue()


def _write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _files(image_id, masks=2):
    return [
        (f"./sa_{image_id}.jpg", _jpeg(image_id)),
        (f"./sa_{image_id}.json", json.dumps(_document(image_id, masks)).encode()),
    ]


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Three tars, image ids 1 to 12, image 2 without a mask; lone files and what macOS leaves."""
    root = tmp_path_factory.mktemp("tars")
    ids = iter(range(1, 13))
    for number, count in enumerate(COUNTS):
        files = [file for image_id in (next(ids) for _ in range(count)) for file in _files(image_id, image_id != 2)]
        extra = [("./._sa_1.jpg", b"-"), ("./._sa_1.json", b"-"), ("./sa_77.jpg", b"-"), ("./sa_78.json", b"-")]
        _write_tar(root / f"sa_00000{number}.tar", files + extra * (number == 1))
    return root


@pytest.fixture(scope="module")
def prepared(tars, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    prepare_tars(tars, out)
    return out


def test_boxes_become_shares():
    """x, y, w, h in pixels; ymin, xmin, ymax, xmax in shares."""
    np.testing.assert_allclose(normalise_box([10, 5, 20, 15], 50, 100), [0.1, 0.1, 0.4, 0.3])


def test_plans(tars, tmp_path):
    whole = make_plan(tars, tmp_path, None, None)
    assert whole.shards == 3
    assert whole.images == (None, None, None)
    limited = make_plan(f"{tars}/sa_*.tar", tmp_path, None, 7)
    assert (limited.images, limited.shards, len(limited.tars)) == ((5, 2), 2, 2)
    assert make_plan(tars, tmp_path, None, 100).images == COUNTS
    with pytest.raises(DataError, match="--shards must be at least 1, not 0"):
        make_plan(tars, tmp_path, 0, None)


@pytest.mark.parametrize("shards", range(1, 13))
@pytest.mark.parametrize("limit", [None, 7])
def test_shards_part_the_images(tars, tmp_path, shards, limit):
    plan = make_plan(tars, tmp_path, shards, limit)
    ids = [image_id for shard in range(shards) for image_id, _, _ in preparing._shard_examples(plan, shard)]
    assert ids == list(range(1, (limit or 12) + 1))


def test_no_tars(tmp_path):
    for nothing in (tmp_path, f"{tmp_path}/*.tar"):
        with pytest.raises(DataError, match=r"matches no \.tar file"):
            make_plan(nothing, tmp_path, None, None)


def test_the_newest_version_is_taken(tmp_path):
    assert prepared_directory(tmp_path) is None
    for version in ("1.0.0", "1.10.0", "1.9.0", "1.11.0.incompleteABC"):
        (tmp_path / "segment_anything" / version).mkdir(parents=True)
        (tmp_path / "segment_anything" / version / "dataset_info.json").touch()
    newest = tmp_path / "segment_anything/1.10.0"
    assert [prepared_directory(path) for path in (tmp_path, newest.parent, newest)] == [newest] * 3
    with pytest.raises(DataError, match="no data set prepared by tensorflow-datasets"):
        TfdsSa1b(tmp_path / "nowhere")


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r'pip install "sam_jax\[tfds\]"'):
        layout.import_tfds()


@pytest.mark.oracle
def test_records(prepared):
    source = TfdsSa1b(prepared)
    assert source.image_ids.tolist() == list(range(1, 13))
    assert source.image_ids.dtype == np.int64
    for index in range(12):
        record = source[index]
        assert record.image_id == index + 1
        assert record.image == _jpeg(index + 1)
        assert record.name.endswith(f"segment_anything/1.0.0: sa_{index + 1}.jpg")
        expected = [a["segmentation"] for a in _document(index + 1, index != 1)["annotations"]]
        found = [{"size": code["size"], "counts": code["counts"].decode()} for code in record.segmentations]
        assert found == expected
        for code in record.segmentations:
            assert coco_mask.decode(code).shape == (HEIGHT, WIDTH)
    with pytest.raises(IndexError):
        source[12]
    again = pickle.loads(pickle.dumps(source))
    assert again[4].image == source[4].image
    assert "tensorflow" not in sys.modules


@pytest.mark.oracle
@pytest.mark.slow  # needs the extra tfds-official
def test_prepared_as_the_official_builder_does(prepared, tars, tmp_path):
    """The same features.json, and the same fields of each example made by the official code."""
    from tensorflow_datasets.datasets.segment_anything import segment_anything_dataset_builder as official

    features = official.Builder(data_dir=tmp_path).info.features
    features.save_config(tmp_path)
    directory = prepared_directory(prepared)
    assert (directory / "features.json").read_text() == (tmp_path / "features.json").read_text()

    import tensorflow_datasets as tfds

    skip = {"image": {"content": tfds.decode.SkipDecoding()}}
    found = tfds.builder_from_directory(directory).as_data_source("train", decoders=skip)[3]
    document = _document(4, 1)
    example = {
        "image": {**document["image"], "content": _jpeg(4)},
        "annotations": official._parse_annotations(document["annotations"], HEIGHT, WIDTH),
    }
    expected = features.deserialize_example_np(features.serialize_example(example), decoders=skip)
    assert found["annotations"].keys() == expected["annotations"].keys()
    assert repr(found) == repr(expected)
    box = found["annotations"]["bbox"][0]
    np.testing.assert_allclose(box, [2 / HEIGHT, 3 / WIDTH, 11 / HEIGHT, 19 / WIDTH], rtol=1e-6)


@pytest.mark.oracle
def test_shards_and_what_is_left(prepared, tars, tmp_path):
    names = {path.name for path in prepared_directory(prepared).iterdir()}
    assert names >= {"dataset_info.json", "features.json", "image_ids.npy"}
    assert {name for name in names if "array_record" in name} == {
        f"segment_anything-train.array_record-0000{shard}-of-00003" for shard in range(3)
    }
    assert "incomplete" not in names
    directory = prepare_tars(tars, tmp_path, shards=5, limit=9)
    assert TfdsSa1b(directory).image_ids.tolist() == list(range(1, 10))
    with pytest.raises(DataError, match="is prepared already"):
        prepare_tars(tars, tmp_path)
    with pytest.raises(DataError, match="give fewer --shards"):
        prepare_tars(tars, tmp_path / "b", shards=13)


@pytest.mark.oracle
def test_a_stopped_preparation_goes_on(tars, tmp_path, monkeypatch):
    write, written = preparing.write_shard, []

    def stop_at_two(plan, shard):
        if shard == 2:
            raise KeyboardInterrupt
        write(plan, shard)

    monkeypatch.setattr(preparing, "write_shard", stop_at_two)
    with pytest.raises(KeyboardInterrupt):
        prepare_tars(tars, tmp_path)
    with pytest.raises(DataError, match="no data set prepared"):
        TfdsSa1b(tmp_path)
    with pytest.raises(DataError, match="begun with other tars, --shards or --limit"):
        prepare_tars(tars, tmp_path, limit=2)

    examples = preparing._shard_examples
    monkeypatch.setattr(preparing, "write_shard", write)
    monkeypatch.setattr(
        preparing, "_shard_examples", lambda plan, shard: (written.append(shard), examples(plan, shard))[1]
    )
    source = TfdsSa1b(prepare_tars(tars, tmp_path))
    assert written == [2]
    assert source.image_ids.tolist() == list(range(1, 13))


@pytest.mark.oracle
def test_bad_tars(tars, tmp_path):
    whole = (tars / "sa_000000.tar").read_bytes()
    with tarfile.open(tars / "sa_000000.tar") as tar:
        header = tar.getmembers()[5].offset
    for number, end in enumerate((header - 600, header + 100, 100, 0)):
        (tmp_path / "cut.tar").write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"cut\.tar: cannot be read as a tar: .*is it complete\?") as caught:
            prepare_tars(tmp_path / "cut.tar", tmp_path / f"a{number}")
        assert "\n" not in str(caught.value)
    document = _document(1, 1)
    del document["annotations"][0]["area"]
    _write_tar(tmp_path / "lacks.tar", [("sa_1.jpg", _jpeg(1)), ("sa_1.json", json.dumps(document).encode())])
    with pytest.raises(DataError, match=r"lacks\.tar: sa_1\.json: not SA-1B's json: 'area' is missing"):
        prepare_tars(tmp_path / "lacks.tar", tmp_path / "b")
    document = _document(1, 1)
    document["annotations"][0]["bbox"] = [30, 0, 20, 5]
    _write_tar(tmp_path / "beyond.tar", [("sa_1.jpg", _jpeg(1)), ("sa_1.json", json.dumps(document).encode())])
    with pytest.raises(DataError, match=r"beyond\.tar: sa_1\.json: .*between 0 and 1") as caught:
        prepare_tars(tmp_path / "beyond.tar", tmp_path / "c")
    assert "\n" not in str(caught.value)
    _write_tar(tmp_path / "twice.tar", _files(1) + [(f"x{name[2:]}", data) for name, data in _files(1)])
    with pytest.raises(DataError, match="1 image ids are not unique, 1 for one"):
        prepare_tars(tmp_path / "twice.tar", tmp_path / "d")


@pytest.mark.oracle
def test_ids_are_gathered_once(prepared, tars, tmp_path, monkeypatch, caplog):
    """As for what the official builder wrote; a file of other data is not believed."""
    directory = prepared_directory(prepare_tars(tars, tmp_path, shards=2))
    ids = directory / "image_ids.npy"
    ids.unlink()
    monkeypatch.setattr(reading, "_IDS_BATCH", 5)
    assert TfdsSa1b(tmp_path).image_ids.tolist() == list(range(1, 13))
    assert np.load(ids).tolist() == list(range(1, 13))
    np.save(ids, np.arange(12))
    with caplog.at_level(logging.WARNING):
        assert TfdsSa1b(tmp_path).image_ids.tolist() == list(range(1, 13))
    assert "is of other data" in caplog.text
    assert np.load(ids).tolist() == list(range(1, 13))
    ids.write_bytes(b"half")
    assert len(TfdsSa1b(tmp_path)) == 12

    def refuse(path, ids):
        raise PermissionError("read-only")

    ids.unlink()
    monkeypatch.setattr(reading, "save_ids", refuse)
    with caplog.at_level(logging.WARNING):
        source = TfdsSa1b(tmp_path)
    assert "cannot be written (read-only)" in caplog.text
    monkeypatch.setattr(reading, "_gather_ids", None)
    assert len(pickle.loads(pickle.dumps(source))) == 12


@pytest.mark.oracle
def test_broken_directories(prepared, tars, tmp_path):
    directory = prepared_directory(prepare_tars(tars, tmp_path / "a"))
    shard = directory / "segment_anything-train.array_record-00001-of-00003"
    shard.write_bytes(b"\0" * len(shard.read_bytes()))
    source = TfdsSa1b(directory)
    assert source[0].image_id == 1
    with pytest.raises(DataError, match="record 6 cannot be read") as caught:
        source[6]
    assert "\n" not in str(caught.value)
    (directory / "image_ids.npy").unlink()
    with pytest.raises(DataError, match="record 5 cannot be read"):
        TfdsSa1b(directory)


@pytest.mark.oracle
def test_other_formats_are_refused(prepared, tars, tmp_path):
    directory = prepared_directory(prepare_tars(tars, tmp_path / "a"))
    info = directory / "dataset_info.json"
    text = info.read_text()
    assert '"array_record"' in text
    info.write_text(text.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match="prepared as tfrecord, which has no random access"):
        TfdsSa1b(directory)
    info.write_text(text.replace('"segment_anything"', '"mnist"'))
    with pytest.raises(DataError, match="holds mnist"):
        TfdsSa1b(directory)
    info.write_text("{")
    with pytest.raises(DataError, match="cannot be read by tensorflow-datasets"):
        TfdsSa1b(directory)


@pytest.mark.oracle
def test_command_line(tars, tmp_path, capsys):
    def run(*arguments):
        code = command_line.main(list(map(os.fspath, arguments)))
        return code, capsys.readouterr().out

    code, out = run("tfds", tars, tmp_path, "--limit", "6", "--shards", "2")
    assert code == 0
    assert "6 images in" in out
    assert run("tfds-index", tmp_path) == (0, "6 images\n")
    for wrong in (("tfds", tars, tmp_path), ("tfds", tars, tmp_path / "b", "--shards", "0"), ("tfds-index", tars)):
        assert run(*wrong) == (2, "")


@pytest.mark.oracle
def test_beam_is_asked_for(tars, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(DataError, match=r'pip install "sam_jax\[tfds-beam\]"'):
        prepare_tars(tars, tmp_path, beam_options=[])


@pytest.mark.oracle
@pytest.mark.slow  # needs the extra tfds-official
def test_beam(prepared, tars, tmp_path):
    """The same shards, byte for byte."""
    directory = prepared_directory(prepare_tars(tars, tmp_path, beam_options=["--runner=DirectRunner"]))
    for path in prepared_directory(prepared).glob("*array_record*"):
        assert len((directory / path.name).read_bytes()) == len(path.read_bytes())
    assert TfdsSa1b(directory).image_ids.tolist() == list(range(1, 13))
