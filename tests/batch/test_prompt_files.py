"""Prompts of many images: our own form, COCO's two, and what each mistake is told."""

import json

import pytest

from sam_jax.batch.image_list import ImageFile
from sam_jax.batch.prompt_files import ObjectPrompt, PromptFileError, read_prompts


@pytest.fixture
def read(tmp_path):
    """read(content, images=None) -> the table of a file with that content."""

    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def call(content, images=None):
        return read_prompts(write("prompts.json", content), None if images is None else write("images.json", images))

    return call


def image(file_name, path=None):
    return ImageFile(path or f"p/{file_name}", file_name, file_name.rpartition(".")[0], 1)


def test_our_own_form(read):
    table = read(
        {
            "dog.jpg": [{"points": [[275, 149]]}, {"points": [[1, 2], [3.5, 4]], "labels": [1, 0], "category_id": 3}],
            "sub/cat.jpg": [{"box": [10, 20, 30, 40], "score": 0.5}],
            "p/with path.jpg": [],
        }
    )
    one, two = table.of(image("dog.jpg")).objects
    assert one == ObjectPrompt(((275.0, 149.0),), (1,))
    assert two == ObjectPrompt(((1.0, 2.0), (3.5, 4.0)), (1, 0), extra={"category_id": 3})
    assert table.of(image("sub/cat.jpg")).objects == (ObjectPrompt(box=(10, 20, 30, 40), extra={"score": 0.5}),)
    assert table.of(image("cat.jpg")).objects[0].box == (10, 20, 30, 40)  # its bare name is enough
    assert table.of(image("with path.jpg")).objects == ()
    assert table.of(image("mouse.jpg")).objects == ()


def test_a_bare_name_that_two_images_have_is_no_name(read):
    table = read({"a/cat.jpg": [{"box": [0, 0, 1, 1]}], "b/cat.jpg": [{"box": [0, 0, 2, 2]}]})
    assert table.of(image("a/cat.jpg")).objects[0].box[2] == 1
    assert table.of(image("cat.jpg")).objects == ()


IMAGES = [{"id": 5, "file_name": "cat.jpg"}, {"id": 9, "file_name": "sub/dog.jpg"}]


def detection(image_id, bbox=(1, 2, 30, 40), **more):
    return {"image_id": image_id, "bbox": list(bbox), **more}


def test_coco_instances(read):
    annotations = [detection(9, category_id=2), detection(5, iscrowd=1), detection(5, (1, 2, 0, 4)), detection(9)]
    table = read({"images": IMAGES, "annotations": annotations})
    dog = table.of(image("sub/dog.jpg"))
    assert dog.image_id == 9
    assert [prompt.box for prompt in dog.objects] == [(1, 2, 31, 42)] * 2
    assert [prompt.extra for prompt in dog.objects] == [{"category_id": 2}, {}]
    assert table.of(image("cat.jpg")).objects == ()
    assert table.of(image("cat.jpg")).image_id == 5
    assert table.left_out == 2


def test_coco_results_know_images_by_number(read):
    table = read([detection(139, score=0.5, category_id=1), detection("cat")])
    assert table.of(image("000000000139.jpg")).image_id == 139
    assert table.of(image("val/sa_139.jpg")).objects[0].extra == {"score": 0.5, "category_id": 1}
    assert table.of(image("cat.jpg")).objects[0].box == (1, 2, 31, 42)
    assert table.of(image("140.jpg")).objects == ()


def test_coco_results_with_names_from_elsewhere(read):
    table = read([detection(9, score=0.5)], images={"images": IMAGES})
    assert table.of(image("sub/dog.jpg")).objects[0].extra == {"score": 0.5}
    assert table.of(image("cat.jpg")).image_id == 5


def test_prompts_for_none_of_the_images_are_a_mistake(read):
    table = read({"dog.jpg": [{"box": [0, 0, 1, 1]}]})
    table.check([image("cat.jpg"), image("dog.jpg")])
    with pytest.raises(PromptFileError, match=r"for none of the images: it names 'dog[.]jpg', and there is"):
        table.check([image("cat.jpg")])
    with pytest.raises(PromptFileError, match="it is empty"):
        read({}).check([image("cat.jpg")])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "prompts.json is not JSON"),
        ("3", "holds a int; expected"),
        ({"a.jpg": {"box": [0, 0, 1, 1]}}, "a.jpg: expected a list of objects"),
        ({"a.jpg": [[0, 0, 1, 1]]}, "a.jpg: object 0: expected"),
        ({"a.jpg": [{}]}, 'object 0 has neither "points" nor "box"'),
        ({"a.jpg": [{"boxes": [0, 0, 1, 1]}]}, "unknown key 'boxes'; known are points, labels, box"),
        ({"a.jpg": [{"box": [0, 0, 1]}]}, r"object 0: box is \[0, 0, 1\]; expected 4 numbers"),
        ({"a.jpg": [{"points": [5, 6]}]}, "point is 5; expected 2 numbers"),
        ({"a.jpg": [{"points": [[5, "6"]]}]}, "expected 2 numbers"),
        ({"a.jpg": [{"points": [[5, 6]], "labels": [1, 0]}]}, "has 1 points and 2 labels"),
        ({"a.jpg": [{"points": [[5, 6]], "labels": [2]}]}, "has the label 2; expected 1"),
        ([{"bbox": [1, 2, 3, 4]}], "annotation 0: expected image_id and bbox"),
        ([{"image_id": 1, "bbox": [1, 2, 3]}], "annotation 0: bbox is"),
        ({"images": IMAGES, "annotations": [detection(7)]}, "no image has the id 7"),
        ({"images": [{"id": 1}], "annotations": []}, "expected COCO images with id and file_name"),
    ],
)
def test_mistakes(read, content, words):
    with pytest.raises(PromptFileError, match=words):
        read(content)


def test_a_missing_file(tmp_path):
    with pytest.raises(PromptFileError, match="is not a file; expected a JSON file"):
        read_prompts(tmp_path / "nowhere.json")
