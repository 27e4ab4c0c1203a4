"""Keywords and regular expressions of a recipe, and the words of a text.

A recipe's expressions meet texts that a model made, so each search has a time limit: one that would go on for ever is
no match.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import regex

SEARCH_SECONDS = 0.5
"""How long one expression may search one text."""
LONG_WORD = 24
"""A longer word is cut into pieces, so that a word that repeats itself is seen to."""

_EDGE = r"[\p{L}\p{M}\p{N}_--\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
"""What a word goes on with; not where words are written without spaces between them, or with endings, as in Korean."""
_UNSEEN = regex.compile(r"\p{Cf}+")
_MARKS = regex.compile(r"[*`~]+|__+")
_MIXED = regex.compile(r"\b(?=\w{0,50}[a-z])(?=\w{0,50}[\p{Cyrillic}\p{Greek}])\w{1,100}\b")
_QUOTES = str.maketrans(
    "\u2018\u2019\u02bc\u201c\u201d\u2010\u2011\u2012\u2013\u2014\u2212", 3 * "'" + 2 * '"' + 6 * "-"
)
_ALIKE = str.maketrans(
    "\u0430\u0435\u0456\u0458\u043e\u0440\u0441\u0455\u0443\u0445\u0501\u03b1\u03b9\u03bd\u03bf\u03c1",
    "aeijopcsyxdaivop",
)
"""Cyrillic and Greek letters that look like Latin ones."""
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
        return found_in_time(pattern, text)
    except TimeoutError:
        return False


def found_in_time(pattern: str, text: str) -> bool:
    """Return whether an expression matches somewhere.

    Raises:
        TimeoutError: it takes too long.
    """
    return _compiled(pattern, False).search(text, timeout=SEARCH_SECONDS) is not None


@lru_cache(maxsize=4096)
def _keyword(word: str) -> Any:
    word = _folded(word)
    before = rf"(?<!{_EDGE})" if regex.match(_EDGE, word, regex.V1) else ""
    after = rf"(?!{_EDGE})" if regex.search(_EDGE + r"\Z", word, regex.V1) else ""
    return regex.compile(before + regex.escape(word) + after, regex.V1)


def says(word: str, text: str) -> bool:
    """Return whether a keyword stands in a text, not as a part of a longer word.

    Neither case nor the kind of spaces, quotes and dashes counts, nor characters that are not seen, nor emphasis.
    """
    plain = _plain(text)
    return _keyword(word).search(plain if _MARKS.search(word) else _unmarked(plain)) is not None


@lru_cache(maxsize=16)
def _plain(text: str) -> str:
    """Return a text for looking for keywords; all of a checklist's are looked for in the same one."""
    return _folded(text)


@lru_cache(maxsize=16)
def _unmarked(plain: str) -> str:
    return " ".join(_MARKS.sub("", plain).split())


def _folded(text: str) -> str:
    """Return a text as it reads: in lower case, with letters that pass for Latin ones in a word that mixes scripts."""
    text = _UNSEEN.sub("", unicodedata.normalize("NFKC", text)).casefold().translate(_QUOTES)
    text = unicodedata.normalize("NFC", text)
    return " ".join(_MIXED.sub(lambda match: match[0].translate(_ALIKE), text).split())


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
