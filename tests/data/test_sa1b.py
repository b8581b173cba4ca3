"""Tars and folders in SA-1B's layout, whole and broken."""

import io
import json
import logging
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sam_jax.cli.data import main
from sam_jax.data.records import DataError
from sam_jax.data.sa1b import Sa1bFolder, Sa1bTars, open_sa1b, tar_index
from sam_jax.data.sa1b.pairs import image_id_of
from sam_jax.data.sa1b.statistics import measure, measure_image


def annotation_of(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
        "area": int(mask.sum()),
        "bbox": [x, y, int(columns[-1]) - x, int(rows[-1]) - y],
    }


def make_pair(number, h=40, w=60, masks=2):
    """A JPEG and its JSON as bytes; every number gives others."""
    rng = np.random.default_rng(number)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).save(buffer, "JPEG")
    drawn = np.zeros((masks, h, w), bool)
    for mask in drawn:
        top, left = rng.integers(0, (h - 20, w - 20))
        mask[top : top + 15, left : left + 20] = True
    content = {"image": {"image_id": number}, "annotations": [annotation_of(mask) for mask in drawn]}
    return buffer.getvalue(), json.dumps(content).encode()


def files_of(numbers, **sizes):
    files = {}
    for number in numbers:
        files[f"sa_{number}.jpg"], files[f"sa_{number}.json"] = make_pair(number, **sizes)
    return files


def write_tar(path, files, format=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_folder(path, files):
    path.mkdir(exist_ok=True)
    for name, data in files.items():
        (path / name).write_bytes(data)


@pytest.fixture
def tars(tmp_path):
    write_tar(tmp_path / "sa_000000.tar", files_of([1, 2, 30]))
    write_tar(tmp_path / "sa_000001.tar", files_of([4, 5], h=70, w=50))
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "folder", files_of([1, 2, 30]))
    return tmp_path / "folder"


def assert_is_pair(record, number, **sizes):
    image, text = make_pair(number, **sizes)
    assert record.image == image
    assert record.image_id == number
    assert list(record.segmentations) == [a["segmentation"] for a in json.loads(text)["annotations"]]


def test_tars_are_read_in_place(tars):
    source = Sa1bTars(tars)
    assert len(source) == 5
    assert source.image_ids.tolist() == [1, 2, 30, 4, 5]
    assert source.image_ids.dtype == np.int64
    for index in (4, 0, 2):
        number = int(source.image_ids[index])
        assert_is_pair(source[index], number, **({"h": 70, "w": 50} if index > 2 else {}))
    assert source[2].name == "sa_000000.tar: sa_30.jpg"
    assert source.annotations(1) == json.loads(make_pair(2)[1])["annotations"]


def test_one_tar_or_a_glob_of_them(tars):
    assert Sa1bTars(tars / "sa_000001.tar").image_ids.tolist() == [4, 5]
    assert open_sa1b(f"{tars}/*01.tar").image_ids.tolist() == [4, 5]


def test_folders_give_the_same_records(folder):
    source = Sa1bFolder(folder)
    assert source.image_ids.tolist() == [1, 2, 30]
    assert_is_pair(source[2], 30)
    assert source[2].name == f"{folder}/sa_30.jpg"


def test_other_names_have_stable_ids_of_their_own(tmp_path):
    image, text = make_pair(0)
    write_folder(tmp_path / "a", {"beach.jpg": image, "beach.json": text, "town.JPEG": image, "town.json": text})
    write_folder(tmp_path / "b", {"town.jpg": image, "town.json": text})
    both, one = Sa1bFolder(tmp_path / "a"), Sa1bFolder(tmp_path / "b")
    assert both.image_ids[1] == one.image_ids[0] != both.image_ids[0]
    assert (both.image_ids >= 0).all()
    assert both[1].image == image
    assert image_id_of("sa_223750") == 223750


def test_open_sa1b_sees_what_a_path_is(tars, folder):
    assert isinstance(open_sa1b(tars), Sa1bTars)
    assert isinstance(open_sa1b(tars / "sa_000000.tar"), Sa1bTars)
    assert isinstance(open_sa1b(folder), Sa1bFolder)


@pytest.mark.parametrize("kind", [Sa1bTars, Sa1bFolder])
def test_sources_pickle_and_open_nothing_until_asked(tars, folder, kind):
    source = kind(tars if kind is Sa1bTars else folder)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.image_ids.tolist() == source.image_ids.tolist()
    assert copy[1] is not source[1]
    assert copy[1].image == source[1].image


def test_an_index_is_kept_and_used(tars, monkeypatch):
    Sa1bTars(tars)
    assert (tars / "sa_000000.tar.index.npz").exists()
    assert not list(tars.glob("*.tmp"))
    monkeypatch.setattr(tar_index, "build_index", lambda *_: pytest.fail("built again"))
    assert_is_pair(Sa1bTars(tars)[0], 1)


def test_an_index_of_another_tar_is_built_again(tars):
    assert len(Sa1bTars(tars / "sa_000000.tar")) == 3
    write_tar(tars / "sa_000000.tar", files_of(range(10, 20)))
    assert Sa1bTars(tars / "sa_000000.tar").image_ids.tolist() == list(range(10, 20))


def test_a_broken_index_is_built_again(tars, caplog):
    Sa1bTars(tars)
    file = tars / "sa_000000.tar.index.npz"
    for broken in (b"", b"nonsense", file.read_bytes()[:-300]):
        file.write_bytes(broken)
        assert_is_pair(Sa1bTars(tars)[0], 1)
    assert caplog.text.count("built again") == 3


def forbid_writes(monkeypatch, forbidden):
    write = tar_index.epath.Path.write_bytes

    def write_bytes(self, data):
        if str(self).startswith(str(forbidden)):
            raise PermissionError("read-only file system")
        return write(self, data)

    monkeypatch.setattr(type(tar_index.epath.Path("x")), "write_bytes", write_bytes)


def test_without_a_place_beside_the_tar_the_index_goes_elsewhere(tmp_path, monkeypatch):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    write_tar(data / "sa_000000.tar", files_of([1, 2]))
    forbid_writes(monkeypatch, data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(Sa1bTars(data, index_dir=elsewhere)) == 2
    assert [file.name for file in elsewhere.iterdir()] == ["sa_000000.tar.index.npz"]
    assert len(Sa1bTars(data)) == 2
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1
    assert not list(data.glob("*.npz*"))
    forbid_writes(monkeypatch, tmp_path)
    write_tar(data / "sa_000000.tar", files_of([1, 2, 3]))
    with pytest.raises(DataError, match=r"written to neither .*--index-dir"):
        Sa1bTars(data, index_dir=elsewhere)


def test_members_far_apart_long_names_and_folders(tmp_path, monkeypatch):
    files = files_of([1, 2])
    long = "a/" * 60 + "sa_3"
    image, text = make_pair(3)
    rows = {
        "sa_1.jpg": files["sa_1.jpg"],
        "README": b"x" * 200_000,
        **files,
        f"{long}.jpg": image,
        f"{long}.json": text,
    }
    write_tar(tmp_path / "x.tar", rows, tarfile.PAX_FORMAT)
    reordered = {"sa_2.json": files["sa_2.json"], "README": b"x" * 200_000, "sa_2.jpg": files["sa_2.jpg"]}
    write_tar(tmp_path / "y.tar", reordered, tarfile.GNU_FORMAT)
    assert_is_pair(Sa1bTars(tmp_path / "x.tar")[0], 1)
    assert_is_pair(Sa1bTars(tmp_path / "x.tar")[2], 3)
    reads = []
    read = Sa1bTars._read
    monkeypatch.setattr(Sa1bTars, "_read", lambda self, *place: reads.append(place) or read(self, *place))
    assert_is_pair(Sa1bTars(tmp_path / "y.tar")[0], 2)
    assert sum(size for *_, size in reads) == sum(map(len, make_pair(2)))  # not what lies between


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_files_without_a_partner_are_counted_and_logged_once(tmp_path, caplog, kind):
    files = files_of(range(6))
    for lost in ("sa_1.json", "sa_3.jpg", "sa_4.json"):
        del files[lost]
    files |= {"._sa_2.jpg": b"", "LICENSE": b"", ".hidden.json": b""}
    path = tmp_path / kind
    write_folder(path, files) if kind == "folder" else write_tar(path.with_suffix(".tar"), files)
    source = open_sa1b(path if kind == "folder" else path.with_suffix(".tar"))
    assert source.image_ids.tolist() == [0, 2, 5]
    assert source.unpaired == 3
    assert [r.levelno for r in caplog.records if "3 files lack" in r.getMessage()] == [logging.WARNING]


def test_repeated_ids_count_once(tars, folder, caplog):
    write_tar(tars / "sa_000002.tar", files_of([30, 7, 4]))
    source = Sa1bTars(tars)
    assert source.image_ids.tolist() == [1, 2, 30, 4, 5, 7]
    assert source.duplicates == 2
    assert source[2].name.startswith("sa_000000.tar")
    assert_is_pair(source[5], 7)
    assert source[5].name == "sa_000002.tar: sa_7.jpg"
    image, text = make_pair(9)
    write_folder(folder, {"sa_02.jpg": image, "sa_02.json": text})
    assert (len(Sa1bFolder(folder)), Sa1bFolder(folder).duplicates) == (3, 1)
    assert "2 pairs have the image id of an earlier one" in caplog.text


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_beyond_the_end_is_an_error(tars, index):
    with pytest.raises(IndexError):
        Sa1bTars(tars)[index]


def test_wrong_paths_say_what_was_expected(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.txt").write_text("")
    for opener in (open_sa1b, Sa1bTars, Sa1bFolder):
        for path in (tmp_path / "nowhere", tmp_path / "empty", tmp_path / "one.txt", tmp_path / "nothing*.tar"):
            with pytest.raises(DataError, match=r"expected a directory or glob of SA-1B tars.*pairs$") as caught:
                opener(path)
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        Sa1bTars(tmp_path / "nowhere.tar")


def test_tars_that_are_not_whole(tmp_path, caplog):
    tar = tmp_path / "sa_000000.tar"
    write_tar(tar, files_of([1, 2]))
    whole = tar.read_bytes()
    with tarfile.open(tar) as archive:
        third = archive.getmembers()[2].offset
    corrupt = whole[:third] + b"\xff" * 512 + whole[third + 512 :]
    for data in (whole[: third + 1500], whole[: third + 100], corrupt, b"<html>link expired</html>" * 99, b""):
        tar.write_bytes(data)
        with pytest.raises(DataError, match=r"sa_000000\.tar is not a whole, uncompressed tar .*fetch it again"):
            Sa1bTars(tar)
    tar.write_bytes(whole[:third])
    assert len(Sa1bTars(tar)) == 1
    assert "may have been cut short" in caplog.text
    write_tar(tar, {"README": b"nothing"})
    with pytest.raises(DataError, match="holds no"):
        Sa1bTars(tar)


def test_a_tar_that_shrinks_or_goes_under_a_reader(tars):
    source = Sa1bTars(tars)
    tar = tars / "sa_000001.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(DataError, match="has become shorter"):
        source[4]
    tar.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        source[4]


@pytest.mark.parametrize(
    "text", [b"", b'{"annotations": [', b"[]", b'{"annotations": {}}', b'{"annotations": [{"area": 3}]}', b"\xff\xfe"]
)
def test_a_json_that_is_none_of_sa1b_is_named(folder, text):
    (folder / "sa_2.json").write_bytes(text)
    with pytest.raises(DataError, match=r"folder/sa_2\.json"):
        Sa1bFolder(folder)[1]


def broken_folder(path):
    """Ten pairs, of which eight are broken in as many ways: (folder, what `check` has to say of them)."""
    files = files_of(range(10))

    def change(number, **fields):
        content = json.loads(files[f"sa_{number}.json"])
        content["annotations"][1] |= fields
        files[f"sa_{number}.json"] = json.dumps(content).encode()

    files["sa_1.jpg"] = files["sa_1.jpg"][:-400]
    files["sa_2.json"] = files["sa_2.json"][:-9]
    change(3, segmentation={"size": [40, 60], "counts": "0l1"})
    change(4, segmentation={"size": [60, 40], "counts": "PX2"})
    change(5, area=17)
    change(6, bbox=[0, 0, 3, 3])
    change(7, bbox=None)
    files["sa_8.jpg"] = make_pair(8, h=44)[0]
    write_folder(path, files)
    return {
        1: "sa_1.jpg cannot be decoded",
        2: "sa_2.json is not JSON",
        3: "sa_3.json: mask 1 has runs of",
        4: "sa_4.json: mask 1 has size [60, 40]",
        5: "sa_5.json: mask 1 has area 17, but its RLE covers 300 pixels",
        6: "sa_6.json: mask 1 has bbox [0, 0, 3, 3]",
        7: "sa_7.json: mask 1 has bbox None",
        8: "sa_8.json: mask 0 has size [40, 60], but the image is [44, 60]",
    }


def test_check_lists_every_bad_record(tmp_path, capsys):
    faults = broken_folder(tmp_path / "bad")
    assert main(["check", str(tmp_path / "bad"), "--threads", "2"]) == 1
    printed = capsys.readouterr().out
    for fault in faults.values():
        assert fault in printed
    assert f"10 records, {len(faults)} bad" in printed
    assert len(printed.splitlines()) == len(faults) + 1


def test_check_is_content_with_good_records_and_not_with_lost_ones(tars, capsys):
    assert main(["check", str(tars)]) == 0
    assert "5 records, 0 bad; 0 files without a partner" in capsys.readouterr().out
    write_tar(tars / "sa_000003.tar", {**files_of([8]), "sa_9.jpg": b""})
    assert main(["check", str(tars)]) == 1


def test_check_takes_boxes_with_and_without_the_last_pixel(tmp_path):
    files = files_of([1])
    content = json.loads(files["sa_1.json"])
    content["annotations"][0]["bbox"][2] += 1
    del content["annotations"][1]["bbox"]
    write_folder(tmp_path / "coco", {**files, "sa_1.json": json.dumps(content).encode()})
    assert main(["check", str(tmp_path / "coco")]) == 0


def test_index_from_the_command_line(tars, capsys):
    assert main(["index", str(tars)]) == 0
    assert len(list(tars.glob("*.index.npz"))) == 2
    assert "5 pairs" in capsys.readouterr().out
    assert main(["index", str(tars / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("sam-jax data index: ")


def test_figures_of_known_shapes():
    h, w = 40, 80
    masks = np.zeros((4, h, w), bool)
    masks[0, 10:20, 40:60] = True  # a box
    masks[1, :, 10:12] = True  # runs that go on in the next column
    masks[2, 0:20, 0:20] = True  # an L: half a square with a quarter cut out
    masks[2, 10:20, 10:20] = False
    y, x = np.mgrid[:h, :w]
    masks[3] = (y + 0.5 - 20) ** 2 + (x + 0.5 - 40) ** 2 < 15**2
    figures = measure_image([annotation_of(mask) for mask in masks])
    assert figures[:, 0] == pytest.approx(np.sqrt(masks.sum(axis=(1, 2)) / (h * w)))
    assert figures[:3, 1] == pytest.approx([0, 0, 1 - 300 / 350])
    assert 0 < figures[3, 1] < 0.05
    assert figures[0, 2:] == pytest.approx([50 / 80, 15 / 40])
    assert figures[1, 2:] == pytest.approx([11 / 80, 0.5])
    assert figures[3, 2:] == pytest.approx([0.5, 0.5])
    empty = {"segmentation": {"size": [h, w], "counts": [h * w]}}
    assert measure_image([empty]).shape == measure_image([]).shape == (0, 4)


def test_measure_takes_images_from_all_over(tars):
    assert measure(Sa1bTars(tars), 0).masks_per_image.tolist() == [2] * 5
    seen = []
    measure(Sa1bTars(tars), 2, lambda order: seen.extend(order.tolist()) or order)
    assert seen == [0, 2]


def test_stats_writes_a_table_figures_and_an_image(tars, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["stats", str(tars), "--out", str(out), "--limit", "4"]) == 0
    figures = json.loads((out / "stats.json").read_text())
    assert (figures["images"], figures["masks"]) == (4, 8)
    assert figures["masks_per_image"]["mean"] == 2
    assert figures["concavity"]["largest"] == pytest.approx(0)
    assert sum(map(sum, figures["centres"]["counts"])) == sum(figures["relative_size"]["histogram"]["counts"]) == 8
    assert "4 images, 8 masks" in capsys.readouterr().out
    with Image.open(out / "stats.png") as image:
        colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert {(43, 108, 176), (13, 28, 66), (255, 232, 140)} <= colours  # bars, and both ends of the map


def test_stats_leaves_broken_images_out(tmp_path, capsys):
    broken_folder(tmp_path / "bad")
    assert main(["stats", str(tmp_path / "bad"), "--out", str(tmp_path)]) == 0
    assert "3 images could not be read" in capsys.readouterr().out
    write_folder(tmp_path / "worse", {"sa_1.jpg": b"", "sa_1.json": b"{}"})
    assert main(["stats", str(tmp_path / "worse"), "--out", str(tmp_path)]) == 2
    assert "none of 1 images has a mask" in capsys.readouterr().err


def test_wrong_numbers_are_refused(tars, capsys):
    assert main(["check", str(tars), "--threads", "0"]) == 2
    assert main(["stats", str(tars), "--limit", "-1"]) == 2
    assert "--limit must be 0 or more, not -1" in capsys.readouterr().err
