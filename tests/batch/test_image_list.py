"""Which photos a run works on: none twice, none lost, in one order, under names that do not collide."""

import itertools
import os

import pytest

from sam_jax.batch.image_list import Photo, find_photos


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Relative paths in messages and results are short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names):
    for name in names:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "w"):
            pass


def described(photos):
    return [(photo.path, photo.name) for photo in photos]


def test_a_directory_is_searched_to_the_bottom():
    touch("p/b.jpg", "p/a.PNG", "p/sub/c.tif", "p/sub/deep/d.webp")
    touch("p/notes.txt", "p/.hidden.jpg", "p/.thumbs/e.jpg", "p/sub/noending")
    assert described(find_photos(["p"])) == [
        ("p/a.PNG", "a"),
        ("p/b.jpg", "b"),
        ("p/sub/c.tif", "sub/c"),
        ("p/sub/deep/d.webp", "sub/deep/d"),
    ]


def test_files_are_taken_as_they_are():
    touch("a/cat", "a/dog.jpg.bak")
    assert described(find_photos(["a/dog.jpg.bak", "a/cat"])) == [("a/dog.jpg.bak", "dog.jpg"), ("a/cat", "cat")]


def test_names_start_at_the_deepest_common_directory(tmp_path):
    touch("a/cat.jpg", "b/cat.jpg", "b/c/cat.jpg")
    assert [photo.name for photo in find_photos(["a/cat.jpg", "b"])] == ["a/cat", "b/c/cat", "b/cat"]
    assert [photo.name for photo in find_photos(["b/cat.jpg", "b/c/cat.jpg"])] == ["cat", "c/cat"]
    assert [photo.name for photo in find_photos([str(tmp_path / "b"), "b/c"])] == ["c/cat", "cat"]


def test_names_that_differ_in_their_suffix_keep_it():
    touch("p/cat.jpg", "p/cat.png", "p/dog.jpg")
    photos = find_photos(["p"])
    assert [photo.name for photo in photos] == ["cat.jpg", "cat.png", "dog"]
    assert [photo.file_name for photo in photos] == ["cat.jpg", "cat.png", "dog.jpg"]


def test_nothing_is_there_twice(tmp_path):
    touch("p/a.jpg", "p/b.jpg")
    photos = find_photos(["p/b.jpg", "p", "./p/../p/a.jpg", str(tmp_path / "p/*.jpg")])
    assert [photo.path for photo in photos] == ["p/b.jpg", "p/a.jpg"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("p/*.jpg", ["p/a.jpg", "p/b.jpg"]),
        ("p/*", ["p/a.jpg", "p/b.jpg", "p/c.png"]),
        ("p/[ac].*", ["p/a.jpg", "p/c.png"]),
        ("p/**/*.jpg", ["p/a.jpg", "p/b.jpg", "p/s/a.jpg"]),
        ("p/**", ["p/a.jpg", "p/b.jpg", "p/c.png", "p/s/a.jpg"]),
        ("*/s/?.jpg", ["p/s/a.jpg"]),
        ("p/*.dat", ["p/x.dat"]),
    ],
)
def test_patterns(pattern, expected, tmp_path):
    touch("p/a.jpg", "p/b.jpg", "p/c.png", "p/s/a.jpg", "p/x.dat", "p/y.txt")
    assert [photo.path for photo in find_photos([pattern])] == expected
    assert [photo.path for photo in find_photos([f"{tmp_path}/{pattern}"])] == [f"{tmp_path}/{p}" for p in expected]


def test_a_name_that_looks_like_a_pattern_is_a_name_where_it_exists():
    touch("p[1]/a.jpg", "b[2].jpg", "p1/no.jpg")
    assert [photo.path for photo in find_photos(["p[1]", "b[2].jpg"])] == ["p[1]/a.jpg", "b[2].jpg"]


def test_lists():
    touch("p/a.jpg", "q/b.jpg", "q/c.png")
    with open("list.txt", "w") as file:
        file.write("# mine\np/a.jpg\n\n  q\np/gone.jpg\nq/*.png\n")
    assert [photo.path for photo in find_photos(["@list.txt"])] == ["p/a.jpg", "q/b.jpg", "q/c.png", "p/gone.jpg"]


def test_the_results_of_an_earlier_run_are_no_photos():
    touch(
        "p/cat.jpg", "p/cat.overlay.jpg", "p/cat.mask_0.png", "p/out/cat.overlay.jpg", "p/out/new.jpg", "p/a.mask_1.png"
    )
    assert [photo.path for photo in find_photos(["p"], exclude="p/out")] == ["p/a.mask_1.png", "p/cat.jpg"]
    assert [photo.path for photo in find_photos(["p/**/*.jpg"], exclude="p/out")] == ["p/cat.jpg"]
    assert [photo.path for photo in find_photos(["p/out"], exclude="p/out")] == [
        "p/out/cat.overlay.jpg",
        "p/out/new.jpg",
    ]
    chosen = find_photos(["p/cat.jpg", "p/cat.overlay.jpg"], exclude="p/out")
    assert [photo.name for photo in chosen] == ["cat", "cat.overlay"]


def test_image_ids_come_from_names_where_all_have_one():
    touch("p/000139.jpg", "p/sa_7.jpg")
    assert [photo.image_id for photo in find_photos(["p"])] == [139, 7]
    touch("p/cat.jpg")
    assert [photo.image_id for photo in find_photos(["p"])] == [1, 2, 3]
    touch("q/1.jpg", "q/sub/1.jpg")
    assert [photo.image_id for photo in find_photos(["q"])] == [1, 2]


def test_shares_of_hosts_cover_everything_once():
    touch(*(f"p/cat_{i}x.jpg" for i in range(7)))
    photos = find_photos(["p"])
    shares = [list(photos.share(host, 3)) for host in range(3)]
    assert [len(share) for share in shares] == [3, 2, 2]
    assert sorted(itertools.chain(*shares), key=lambda photo: photo.image_id) == list(photos)


def test_paths_of_other_systems_are_not_resolved():
    from sam_jax.batch.image_list import PhotoList

    photos = PhotoList(["gs://bucket/a/x.jpg", "gs://bucket/b/x.jpg"], "gs://bucket")
    assert [photo.name for photo in photos] == ["a/x", "b/x"]
    assert [photo.name for photo in PhotoList(["gs://bucket/a/x.jpg", "/a/x.jpg"], "")] == ["gs/bucket/a/x", "a/x"]


class Bucket:
    """gs://bucket/p, as a file system shows it that names directories without gs://."""

    def __init__(self, path):
        self.path = path

    def is_dir(self):
        return self.path.rstrip("/") == "gs://bucket/p"

    def exists(self):
        return self.is_dir()

    def walk(self):
        yield "bucket/p", ["sub", ".thumbs"], ["b.jpg", "notes.txt"]
        yield "bucket/p/sub", [], ["a.jpg"]

    def glob(self, pattern):
        assert (self.path, pattern) == ("gs://bucket/p", "*.jpg")
        return [Bucket("gs://bucket/p/b.jpg")]

    def __fspath__(self):
        return self.path


@pytest.mark.parametrize("prefix", ["gs://bucket/p", "gs://bucket/p/"])
def test_buckets(monkeypatch, prefix):
    monkeypatch.setattr("sam_jax.batch.image_list.epath.Path", Bucket)
    everything = [("gs://bucket/p/b.jpg", "b"), ("gs://bucket/p/sub/a.jpg", "sub/a")]
    assert described(find_photos([prefix])) == everything
    assert described(find_photos(["gs://bucket/p/*.jpg", prefix])) == everything
    with pytest.raises(ValueError, match="for local paths"):
        find_photos(["gs://bucket/p/**/*.jpg"])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["nowhere.jpg"], "nowhere.jpg does not exist; expected a photo, a directory, a pattern"),
        (["nowhere/*.jpg"], r"nowhere/\*.jpg matches no file"),
        (["empty"], "no photos in empty; looked for .avif"),
        (["@nowhere.txt"], "@nowhere.txt: nowhere.txt is not a file"),
        (["@binary.jpg"], "is not a text file"),
    ],
)
def test_mistakes(inputs, words):
    os.makedirs("empty")
    with open("binary.jpg", "wb") as file:
        file.write(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match=words):
        find_photos(inputs)


def test_a_photo_on_its_own():
    assert Photo.single("a/b.c.jpg", 5) == Photo("a/b.c.jpg", "b.c.jpg", "b.c", 5)
