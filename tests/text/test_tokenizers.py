"""Tokens as CLIP and SigLIP 2 have them, and one line for each text that cannot be used."""

import importlib.util
import re
import sys

import pytest

from sam_jax.config import clip_vit_b_32
from sam_jax.text.tokenizers import TextError, open_tokenizer
from tests.tiny_towers import TINY_CLIP, TINY_SIGLIP, WORDS, tokenizer_json

needs_vocabulary = pytest.mark.skipif(
    importlib.util.find_spec("instant_clip_tokenizer") is None, reason="there is no wheel of it for this Python"
)


@pytest.fixture(scope="module")
def siglip():
    return open_tokenizer(TINY_SIGLIP, tokenizer_json(TINY_SIGLIP))


@needs_vocabulary
def test_clip_has_its_published_tokens():
    rows = open_tokenizer(clip_vit_b_32(), None)(["a photo of a cat", "A  Photo of a CAT "])
    assert rows.shape == (2, 77)
    assert rows[0].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407] + [0] * 70
    assert rows[1].tolist() == rows[0].tolist()


def test_siglip_ends_and_pads(siglip):
    row = siglip(["The red DOG"])[0].tolist()
    assert row == [4 + WORDS.index(word) for word in ("the", "red", "dog")] + [1] + [0] * 8


def test_clip_reads_a_tokenizer_json_too():
    row = open_tokenizer(TINY_CLIP, tokenizer_json(TINY_CLIP))(["a ball"])[0].tolist()
    assert row == [2 + len(WORDS), 2, 2 + WORDS.index("ball"), 3 + len(WORDS)] + [0] * 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text '' is empty; expected a phrase such as 'a dog'"),
        (" \n", r"text ' \n' is empty; expected a phrase such as 'a dog'"),
        (7, "text 7 is a int; expected a phrase such as 'a dog'"),
        ("x" * 10_000, f"text '{'x' * 40}...' has 10,000 characters; expected a phrase of at most 1,000"),
        ("a dog " * 6, "has 12 tokens, and the text tower reads 11; shorten it"),
        ("ሰላም ዓለም", "no word of text 'ሰላም ዓለም' is in the vocabulary of the text tower; say it in another"),
    ],
)
def test_texts_without_a_meaning_are_refused_in_one_line(siglip, text, message):
    with pytest.raises(TextError, match=re.escape(message)) as caught:
        siglip([text])
    assert "\n" not in str(caught.value)


@needs_vocabulary
@pytest.mark.parametrize("text", ["ሰላም ዓለም", "狗"])
def test_clip_refuses_what_it_can_only_spell_in_bytes(text):
    with pytest.raises(TextError, match=f"no word of text '{text}' is in the vocabulary"):
        open_tokenizer(clip_vit_b_32(), None)([text])
    open_tokenizer(clip_vit_b_32(), None)(["café", "🙂", "a", "x y z"])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"{}", "tokenizer.json cannot be read"),
        (tokenizer_json(TINY_CLIP), "tokenizer.json has no token <eos>; take the one that belongs to the weights"),
    ],
)
def test_files_that_are_no_tokenizers_are_refused(file, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_tokenizer(TINY_SIGLIP, file)


@needs_vocabulary
def test_a_vocabulary_of_another_size_is_refused():
    with pytest.raises(ValueError, match="CLIP's vocabulary has 49408 tokens and the text tower 40"):
        open_tokenizer(TINY_CLIP, None)


def test_a_missing_library_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TextError, match=re.escape("tokenizers is not installed, which text prompts need: pip")):
        open_tokenizer(TINY_SIGLIP, tokenizer_json(TINY_SIGLIP))
