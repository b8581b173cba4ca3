"""Texts to tokens, by the libraries that know the vocabularies: pip install "sam_jax[text]".

CLIP's vocabulary lies in instant-clip-tokenizer; any other, and CLIP's too, is read from a tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sam_jax.config import TowersConfig

MAX_CHARACTERS = 1000
# Tokens of CLIP below this are single bytes; a word of a language that it has learnt has longer ones.
_CLIP_BYTES = 512
_SHOWN = 40


class TextError(ValueError):
    """A text that has no meaning to the text tower, or no library to read it; the message says what to do."""


@dataclass(frozen=True)
class Tokenizer:
    """Turns texts into rows of tokens.

    Attributes:
      encode: text -> tokens, without those that every text has.
      is_strange: text and its tokens -> whether no word of it is in the vocabulary.
      start: tokens before those of the text; end: after them; padding: fills the row.
      length: of a row.
      lower: whether texts are made lower-case first.
    """

    encode: Callable[[str], list[int]]
    is_strange: Callable[[str, list[int]], bool]
    start: tuple[int, ...]
    end: int
    padding: int
    length: int
    lower: bool

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) texts -> (n, length) int32. Raises TextError for the first that cannot be used."""
        rows = np.full((len(texts), self.length), self.padding, np.int32)
        for row, text in zip(rows, texts, strict=True):
            tokens = self._tokens(text)
            row[: len(tokens)] = tokens
        return rows

    def _tokens(self, text: str) -> list[int]:
        check_text(text)
        tokens = self.encode(text.lower() if self.lower else text)
        room = self.length - len(self.start) - 1
        if len(tokens) > room:
            raise TextError(f"text {quote(text)} has {len(tokens)} tokens, and the text tower reads {room}; shorten it")
        if not tokens or self.is_strange(text, tokens):
            raise TextError(
                f"no word of text {quote(text)} is in the vocabulary of the text tower; say it in another language, or "
                "take a tower that knows this one, such as SigLIP 2's"
            )
        return [*self.start, *tokens, self.end]


def check_text(text: str) -> None:
    """Raises TextError for what is no text, is empty, or is too long for any tower."""
    if not isinstance(text, str):
        raise TextError(f"text {text!r} is a {type(text).__name__}; expected a phrase such as 'a dog'")
    if not text.strip():
        raise TextError(f"text {text!r} is empty; expected a phrase such as 'a dog'")
    if len(text) > MAX_CHARACTERS:
        raise TextError(
            f"text {quote(text)} has {len(text):,} characters; expected a phrase of at most {MAX_CHARACTERS:,}"
        )


def quote(text: str) -> str:
    """A text for messages: in quotes, its middle left out where it is long."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def open_tokenizer(config: TowersConfig, file: bytes | None) -> Tokenizer:
    """The tokenizer of towers.

    Args:
      file: the content of a tokenizer.json; None means the vocabulary of instant-clip-tokenizer.

    Raises:
      TextError: the library is not installed; says how to get it.
      ValueError: the file is none, or has more tokens than the text tower.
    """
    if file is None:
        return _builtin_clip(config)
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise _missing("tokenizers") from error
    try:
        known = tokenizers.Tokenizer.from_str(file.decode())
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"tokenizer.json cannot be read ({error}); take it from where the weights are from") from error
    if known.get_vocab_size() > config.text.vocab_size:
        raise ValueError(
            f"tokenizer.json has {known.get_vocab_size()} tokens and the text tower {config.text.vocab_size}; take the "
            "one that belongs to the weights"
        )

    def encode(text: str) -> list[int]:
        found: list[int] = known.encode(text, add_special_tokens=False).ids
        return found

    def is_strange(_: str, tokens: list[int]) -> bool:
        names = [str(known.id_to_token(token)) for token in tokens]
        return all(name == "<unk>" or name.startswith("<0x") for name in names)

    if config.is_clip:
        ends = [_special(known, name) for name in ("<|startoftext|>", "<|endoftext|>")]
        return Tokenizer(encode, _is_all_bytes, (ends[0],), ends[1], 0, config.text.context_length, lower=False)
    end, padding = _special(known, "<eos>"), _special(known, "<pad>")
    return Tokenizer(encode, is_strange, (), end, padding, config.text.context_length, lower=True)


def _builtin_clip(config: TowersConfig) -> Tokenizer:
    try:
        import instant_clip_tokenizer
    except ModuleNotFoundError as error:
        raise _missing("instant-clip-tokenizer") from error
    known = instant_clip_tokenizer.Tokenizer()
    start, end = known.start_of_text(), known.end_of_text()
    if end >= config.text.vocab_size:
        raise ValueError(
            f"CLIP's vocabulary has {end + 1} tokens and the text tower {config.text.vocab_size}; put the "
            "tokenizer.json of these towers into their directory"
        )
    return Tokenizer(known.encode, _is_all_bytes, (start,), end, 0, config.text.context_length, lower=False)


def _is_all_bytes(text: str, tokens: list[int]) -> bool:
    """Whether CLIP spells a text of other letters than English ones byte by byte."""
    return not text.isascii() and all(token < _CLIP_BYTES for token in tokens)


def _special(known: object, name: str) -> int:
    token: int | None = known.token_to_id(name)  # type: ignore[attr-defined]
    if token is None:
        raise ValueError(f"tokenizer.json has no token {name}; take the one that belongs to the weights")
    return token


def _missing(package: str) -> TextError:
    return TextError(f"{package} is not installed, which text prompts need: pip install 'sam_jax[text]'")
