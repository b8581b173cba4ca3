"""Which images a run works on: none twice, none lost, in one order, under names that do not collide."""

import itertools
import os

import pytest

from sam_jax.batch.image_list import ImageFile, find_images


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


def described(images):
    return [(image.path, image.name) for image in images]


def test_a_directory_is_searched_to_the_bottom():
    touch("p/b.jpg", "p/a.PNG", "p/sub/c.tif", "p/sub/deep/d.webp")
    touch("p/notes.txt", "p/.hidden.jpg", "p/.thumbs/e.jpg", "p/sub/noending")
    assert described(find_images(["p"])) == [
        ("p/a.PNG", "a"),
        ("p/b.jpg", "b"),
        ("p/sub/c.tif", "sub/c"),
        ("p/sub/deep/d.webp", "sub/deep/d"),
    ]


def test_files_are_taken_as_they_are():
    touch("a/cat", "a/dog.jpg.bak")
    assert described(find_images(["a/dog.jpg.bak", "a/cat"])) == [("a/dog.jpg.bak", "dog.jpg"), ("a/cat", "cat")]


def test_names_start_at_the_deepest_common_directory(tmp_path):
    touch("a/cat.jpg", "b/cat.jpg", "b/c/cat.jpg")
    assert [image.name for image in find_images(["a/cat.jpg", "b"])] == ["a/cat", "b/c/cat", "b/cat"]
    assert [image.name for image in find_images(["b/cat.jpg", "b/c/cat.jpg"])] == ["cat", "c/cat"]
    assert [image.name for image in find_images([str(tmp_path / "b"), "b/c"])] == ["c/cat", "cat"]


def test_names_that_differ_in_their_suffix_keep_it():
    touch("p/cat.jpg", "p/cat.png", "p/dog.jpg")
    images = find_images(["p"])
    assert [image.name for image in images] == ["cat.jpg", "cat.png", "dog"]
    assert [image.file_name for image in images] == ["cat.jpg", "cat.png", "dog.jpg"]


def test_nothing_is_there_twice(tmp_path):
    touch("p/a.jpg", "p/b.jpg")
    images = find_images(["p/b.jpg", "p", "./p/../p/a.jpg", str(tmp_path / "p/*.jpg")])
    assert [image.path for image in images] == ["p/b.jpg", "p/a.jpg"]


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
    assert [image.path for image in find_images([pattern])] == expected
    assert [image.path for image in find_images([f"{tmp_path}/{pattern}"])] == [f"{tmp_path}/{p}" for p in expected]


def test_a_name_that_looks_like_a_pattern_is_a_name_where_it_exists():
    touch("p[1]/a.jpg", "b[2].jpg", "p1/no.jpg")
    assert [image.path for image in find_images(["p[1]", "b[2].jpg"])] == ["p[1]/a.jpg", "b[2].jpg"]


def test_lists():
    touch("p/a.jpg", "q/b.jpg", "q/c.png")
    with open("list.txt", "w") as file:
        file.write("# mine\np/a.jpg\n\n  q\np/gone.jpg\nq/*.png\n")
    assert [image.path for image in find_images(["@list.txt"])] == ["p/a.jpg", "q/b.jpg", "q/c.png", "p/gone.jpg"]


def test_the_results_of_an_earlier_run_are_no_images():
    touch(
        "p/cat.jpg", "p/cat.overlay.jpg", "p/cat.mask_0.png", "p/out/cat.overlay.jpg", "p/out/new.jpg", "p/a.mask_1.png"
    )
    assert [image.path for image in find_images(["p"], exclude="p/out")] == ["p/a.mask_1.png", "p/cat.jpg"]
    assert [image.path for image in find_images(["p/**/*.jpg"], exclude="p/out")] == ["p/cat.jpg"]
    assert [image.path for image in find_images(["p/out"], exclude="p/out")] == [
        "p/out/cat.overlay.jpg",
        "p/out/new.jpg",
    ]
    chosen = find_images(["p/cat.jpg", "p/cat.overlay.jpg"], exclude="p/out")
    assert [image.name for image in chosen] == ["cat", "cat.overlay"]


def test_image_ids_come_from_names_where_all_have_one():
    touch("p/000139.jpg", "p/sa_7.jpg")
    assert [image.image_id for image in find_images(["p"])] == [139, 7]
    touch("p/cat.jpg")
    assert [image.image_id for image in find_images(["p"])] == [1, 2, 3]
    touch("q/1.jpg", "q/sub/1.jpg")
    assert [image.image_id for image in find_images(["q"])] == [1, 2]


def test_shares_of_hosts_cover_everything_once():
    touch(*(f"p/cat_{i}x.jpg" for i in range(7)))
    images = find_images(["p"])
    shares = [list(images.share(host, 3)) for host in range(3)]
    assert [len(share) for share in shares] == [3, 2, 2]
    assert sorted(itertools.chain(*shares), key=lambda image: image.image_id) == list(images)


def test_paths_of_other_systems_are_not_resolved():
    from sam_jax.batch.image_list import ImageList

    images = ImageList(["gs://bucket/a/x.jpg", "gs://bucket/b/x.jpg"], "gs://bucket")
    assert [image.name for image in images] == ["a/x", "b/x"]
    assert [image.name for image in ImageList(["gs://bucket/a/x.jpg", "/a/x.jpg"], "")] == ["gs/bucket/a/x", "a/x"]


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
    assert described(find_images([prefix])) == everything
    assert described(find_images(["gs://bucket/p/*.jpg", prefix])) == everything
    with pytest.raises(ValueError, match="for local paths"):
        find_images(["gs://bucket/p/**/*.jpg"])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["nowhere.jpg"], "nowhere.jpg does not exist; expected an image, a directory, a pattern"),
        (["nowhere/*.jpg"], r"nowhere/\*.jpg matches no file"),
        (["empty"], "no images in empty; looked for .avif"),
        (["@nowhere.txt"], "@nowhere.txt: nowhere.txt is not a file"),
        (["@binary.jpg"], "is not a text file"),
    ],
)
def test_mistakes(inputs, words):
    os.makedirs("empty")
    with open("binary.jpg", "wb") as file:
        file.write(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match=words):
        find_images(inputs)


def test_an_image_on_its_own():
    assert ImageFile.single("a/b.c.jpg", 5) == ImageFile("a/b.c.jpg", "b.c.jpg", "b.c", 5)
