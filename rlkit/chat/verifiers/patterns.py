"""Keywords and regular expressions of a recipe, and the words of a text.

A recipe's expressions meet texts that a model made, so each search has a time limit: one that would go on for ever is
no match.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import regex

SEARCH_SECONDS = 0.5
"""How long one expression may search one text."""
LONG_WORD = 24
"""A longer word is cut into pieces, so that a word that repeats itself is seen to."""

_EDGE = r"[a-zA-Z0-9_\u00c0-\u024f]"
_WORDS = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]|(?:(?![\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}])\w)+(?:['\u2019]\w+)*"
)


@lru_cache(maxsize=1024)
def _compiled(pattern: str, dot_all: bool) -> Any:
    return regex.compile(pattern, regex.DOTALL if dot_all else 0)


def matches(pattern: str, text: str) -> bool:
    """Return whether an expression matches the whole text, line ends included."""
    try:
        return _compiled(pattern, True).fullmatch(text, timeout=SEARCH_SECONDS) is not None
    except TimeoutError:
        return False


def found(pattern: str, text: str) -> bool:
    """Return whether an expression matches somewhere; one that takes too long counts as not found."""
    try:
        return _compiled(pattern, False).search(text, timeout=SEARCH_SECONDS) is not None
    except TimeoutError:
        return False


@lru_cache(maxsize=4096)
def _keyword(word: str) -> Any:
    word = " ".join(word.split())
    before = rf"(?<!{_EDGE})" if regex.match(_EDGE, word) else ""
    after = rf"(?!{_EDGE})" if regex.search(_EDGE + r"\Z", word) else ""
    inner = r"\s+".join(map(regex.escape, word.split(" ")))
    return regex.compile(before + inner + after, regex.IGNORECASE)


def says(word: str, text: str) -> bool:
    """Return whether a keyword stands in a text, upper or lower case, not as a part of a longer Latin word."""
    return _keyword(word).search(text) is not None


def words(text: str) -> list[str]:
    """Return the words of a text in lower case; a Chinese, Japanese or Thai character is one."""
    found = _WORDS.findall(text.lower())
    if all(len(word) <= LONG_WORD for word in found):
        return found
    return [piece for word in found for piece in _pieces(word)]


def _pieces(word: str) -> list[str]:
    return [word] if len(word) <= LONG_WORD else [word[at : at + 4] for at in range(0, len(word), 4)]


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return the n-grams of some words in order; a shorter text is one n-gram, an empty one none."""
    if not tokens:
        return []
    return [tuple(tokens[at : at + n]) for at in range(max(1, len(tokens) - n + 1))]
