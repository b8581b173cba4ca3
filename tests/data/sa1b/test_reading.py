"""Tars and folders in SA-1B's layout, whole and broken."""

import json
import logging
import pickle
import tarfile

import numpy as np
import pytest

from sam_jax.data.records import DataError
from sam_jax.data.sa1b import Sa1bFolder, Sa1bTars, open_sa1b, tar_index
from sam_jax.data.sa1b.pairs import image_id_of
from tests.sa1b_pairs import files_of, make_pair, write_folder, write_tar


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
    assert "may be truncated" in caplog.text
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
