"""Number of tokens of long texts, in a fifth of the time that encoding takes."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import regex
from tokenizers import models, normalizers, pre_tokenizers

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

MOST_WORDS = 1 << 18  # that are remembered
MOST_ADDED = 1000  # added tokens; each is searched for in every text
# Properties of characters in an expression, and their ASCII characters.
PROPERTY = re.compile(r"\\p\{(\w+)\}")
CLASSES = re.compile(r"(?s)((?<!\\)\[(?:\\.|[^\]\\])*\])")
ASCII = {"L": "a-zA-Z", "N": "0-9"}
# Places of a character that decide how a text is split there, also next to an apostrophe.
PROBE = "a{0}b {0}1{0}\n{0} {0}{0}.'{0} '{0}{0} '{0}e '{0}l 'l{0} 'r{0} 'v{0}\n\n{0}"


class WordCounts:
    """Tokens of texts as a sum over their words; each word is tokenized once.

    A tokenizer of bytes splits a text with a regular expression, and no token crosses a split. The
    same expression is used here. A character that the two libraries do not treat alike, as each
    has the letters of its own version of Unicode, is found when it is first seen. In ASCII texts,
    which are most, properties of characters can be written out; `re` then needs a third of the
    time.
    """

    def __init__(self, backend: Tokenizer, pattern: str):
        self._backend, self._pattern = backend, regex.compile(pattern)
        self._ascii_pattern = in_ascii(pattern)
        self._to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._added = [token.content for token in backend.get_added_tokens_decoder().values()]
        self._counts: dict[str, int] = {}
        self._alike: dict[str, bool] = {}

    def count(self, text: str) -> int | None:
        """Tokens of a text; None if it has to be encoded."""
        if not self._is_plain(text):
            return None
        pattern = self._ascii_pattern if text.isascii() else None
        words, counts = (pattern or self._pattern).findall(text), self._counts
        if len(counts) > MOST_WORDS:
            counts.clear()
        for word in set(words).difference(counts):
            counts[word] = self._count_word(word)
        return sum(map(counts.__getitem__, words))

    def _is_plain(self, text: str) -> bool:
        characters = set(text)
        for character in characters.difference(self._alike):
            self._alike[character] = self._is_alike(character)
        return (
            all(map(self._alike.__getitem__, characters))
            and unicodedata.is_normalized("NFC", text)
            and not any(token in text for token in self._added)
        )

    def _is_alike(self, character: str) -> bool:
        """Whether texts with a character are split here as the tokenizer splits them."""
        if unicodedata.category(character) == "Cs":  # half of a pair, no text
            return False
        probe = PROBE.format(character)
        places = [place for _, place in self._backend.pre_tokenizer.pre_tokenize_str(probe)]
        patterns = [self._pattern, *filter(None, [probe.isascii() and self._ascii_pattern])]
        return all(
            places == [match.span() for match in pattern.finditer(probe)] for pattern in patterns
        )

    def _count_word(self, word: str) -> int:
        ((letters, _),) = self._to_letters.pre_tokenize_str(word)
        return len(self._backend.model.tokenize(letters))


def in_ascii(pattern: str) -> re.Pattern[str] | None:
    """The same expression for ASCII texts; None if it has more than `re` knows."""
    if not set(PROPERTY.findall(pattern)) <= ASCII.keys():
        return None
    parts = CLASSES.split(pattern)  # each second one is a class of characters
    parts[::2] = [PROPERTY.sub(lambda found: f"[{ASCII[found[1]]}]", part) for part in parts[::2]]
    parts[1::2] = [PROPERTY.sub(lambda found: ASCII[found[1]], part) for part in parts[1::2]]
    try:
        return re.compile("".join(parts), re.ASCII)
    except re.error:
        return None


_known: WeakKeyDictionary[PreTrainedTokenizerBase, WordCounts | None] = WeakKeyDictionary()


def word_counts(tokenizer: PreTrainedTokenizerBase) -> WordCounts | None:
    """Counts of a fast tokenizer's words; None for one that does not work word by word."""
    if tokenizer not in _known:
        backend = tokenizer.backend_tokenizer
        pattern = _pattern(backend) if _has_words(backend) else None
        _known[tokenizer] = None if pattern is None else WordCounts(backend, pattern)
    return _known[tokenizer]


def _has_words(backend: Tokenizer) -> bool:
    return (
        isinstance(backend.model, models.BPE)
        and backend.model.dropout is None
        and isinstance(backend.normalizer, normalizers.NFC | None)
        and len(backend.get_added_tokens_decoder()) <= MOST_ADDED
        and backend.pre_tokenizer is not None
    )


def _pattern(backend: Tokenizer) -> str | None:
    """Expression of a tokenizer that splits a text once, and then takes bytes for letters."""
    made: dict[str, Any] = json.loads(backend.pre_tokenizer.__getstate__())
    match made.get("pretokenizers"):
        case [
            {
                "type": "Split",
                "pattern": {"Regex": str(pattern)},
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return pattern
    return None
