"""Texts to token ids of one length: words of a vocabulary, or the tokens of a tokenizer file."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmx.errors import DataError

PADDING, UNKNOWN = 0, 1
WORD = re.compile(r"\w+|[^\w\s]")


class TextReader(ABC):
    """Gives a text as ids (length,) int64, cut, or padded at the end."""

    @abstractmethod
    def __call__(self, text: str) -> Tensor:
        """Give the ids."""


class Vocabulary(TextReader):
    """Words in small letters and single signs, numbered by how often training texts have them.

    0 is padding, 1 any word outside the vocabulary; of words that are equally frequent, the first in the
    alphabet comes first. `texts` gives the training texts; they are counted when the first text is read.
    """

    def __init__(self, texts: Callable[[], Iterable[str]], size: int, length: int) -> None:
        if size < 3 or length < 1:
            raise DataError(f"vocabulary_size {size} must be above 2 and text_length {length} above 0")
        self.texts, self.size, self.length = texts, size, length

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Number of each known word."""
        counts = Counter(word for text in self.texts() for word in WORD.findall(text.lower()))
        ordered = sorted(counts, key=lambda word: (-counts[word], word))[: self.size - 2]
        return {word: number for number, word in enumerate(ordered, start=2)}

    def __call__(self, text: str) -> Tensor:
        """Number the words."""
        found = [self.numbers.get(word, UNKNOWN) for word in WORD.findall(text.lower())[: self.length]]
        return torch.tensor(found + [PADDING] * (self.length - len(found)), dtype=torch.int64)


class TokenizerFile(TextReader):
    """A `tokenizer.json` of the library tokenizers, with its own special tokens and padding id."""

    def __init__(self, path: Path, length: int) -> None:
        self.path, self.length = path, length
        if not path.is_file():
            raise DataError(f"tokenizer '{path}' is no file; give the path of a tokenizer.json")

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, set to cut and pad (DataError where the file holds none)."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(self.path))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"'{self.path}' is no tokenizer file ({error}); give a tokenizer.json") from error
        tokenizer.enable_truncation(self.length)
        tokenizer.enable_padding(length=self.length, **_padding(tokenizer))
        return tokenizer

    def __call__(self, text: str) -> Tensor:
        """Tokenise."""
        return torch.tensor(self.tokenizer.encode(text).ids, dtype=torch.int64)


def _padding(tokenizer: Any) -> dict[str, Any]:
    """Give the padding token that the file names, or one with a usual name, else the id 0."""
    if tokenizer.padding:
        return {key: tokenizer.padding[key] for key in ("pad_id", "pad_token")}
    names = [name for name in ("[PAD]", "<pad>", "<|endoftext|>") if tokenizer.token_to_id(name) is not None]
    return (
        {"pad_id": tokenizer.token_to_id(names[0]), "pad_token": names[0]} if names else {"pad_id": PADDING}
    )


def text_reader(tokenizer: str, length: int, size: int, texts: Callable[[], Iterable[str]]) -> TextReader:
    """Choose by the option `tokenizer`: the path of a tokenizer file, or empty for the built-in words."""
    if tokenizer:
        return TokenizerFile(Path(tokenizer).expanduser(), length)
    return Vocabulary(texts, size, length)
