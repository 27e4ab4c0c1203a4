"""The reward ``math``: 1 where the final answer equals the right one in value, else 0.

Plain numbers, tuples, intervals and sets are compared here, exactly and at once; formulas go to math-verify, in a
process that is ended when its time is up. What cannot be an answer never gets there: code, sentences, towers of
exponents, huge factorials.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from rlkit.chat.verifiers.math_answers import NoAnswer, final_answers
from rlkit.chat.verifiers.math_values import MAX_CHARACTERS, Number, Value, clean, plain_value, same_value
from rlkit.chat.verifiers.math_worker import worker
from rlkit.config.verifiers import MathSettings
from rlkit.errors import DataError
from rlkit.policy.text_rewards import Sample, TextReward

MAX_DEPTH = 20
"""Of brackets and braces inside each other."""

_HEDGE = re.compile(r"(?<![^\W_])(?:or|either|maybe|perhaps|not)(?![^\W_])", re.IGNORECASE)
_TO_DO = re.compile(
    r"[0-9)}] ?(?:[-+*/\u00d7\u00f7]|\\times|\\cdot|\\div)[ ({\\]*[0-9]|(?<![0-9.])(?!10\b)[0-9.]+ ?(?:\^|\*\*)"
    r"|!|\\(?:sqrt|log|ln|exp|sin|cos|tan|arc|cot|sec|csc)"
)
"""What a plain number has no part of: between numbers +, -, *, / and powers of other numbers than 10; functions."""
_OPERATOR = re.compile(r"\\(?:i?i?int|oint|sum|prod|lim|binom|gcd|lcm|det|max|min)(?![a-zA-Z])|\\[dt]?frac ?\{ ?d")
"""What no answer has a part of, unless the right one has."""
_WORD = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]{4,}")
_FUNCTIONS = frozenset(
    ("sqrt", "sinh", "cosh", "tanh", "asin", "acos", "atan", "arcsin", "arccos", "arctan", "infty", "cbrt", "binom")
)
_TEXT_WORDS = re.compile(r"\\(?:text|mathrm|textbf|mathbf|operatorname|mbox) ?\{([^{}]*)\}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[a-z]{1,20}\}")
_TOWER = re.compile(r"(?:\^|\*\*)[^\s,;=+]{0,30}?(?:\^|\*\*)[^\s,;=+]{0,30}?(?:\^|\*\*)|(?:\^|\*\*)[ ({]*-?[0-9]{4,}")
_TOO_LARGE = re.compile(r"[0-9]{4,} ?!|[0-9)] ?! ?!|! ?\)+ ?!|[0-9]{60,}|[0-9]{7,}\}? ?(?:\^|\*\*)")
_OPTION = re.compile(r"\(?([A-Za-z])(?:\)|[.:](?!\S)| ?\))[\s\S]*|\(?([A-Za-z])\)?")
_ANOTHER = re.compile(r"\(?\b[a-z](?:\)|[.:](?!\S))|\b(?:or|and)\b|[,/&]\s?\(?[a-z]\b(?!\s[a-z])", re.IGNORECASE)
"""What after an option's letter names another one, or may."""
_TRUTH = re.compile(r"(yes|no|true|false)(?:[,.;:!]\s(?!(?:or|and|yes|no|true|false)\b)[\s\S]*)?")
_CHOICE = re.compile(
    r"\\(?:vee|lor|to|(?:long)?rightarrow|Rightarrow|n?leq?|n?geq?|neq?|lt|gt)(?![a-zA-Z])|[<>≤≥≠\u2228→]"
)
"""What no answer has a part of, unless the right one has: this or that, from this to that, more than this."""
_TWO_UNITS = re.compile(r"[0-9][^0-9=]*(?:\\(?:text|mathrm|mbox) ?\{|(?<![\\a-zA-Z])[a-z]{2,})[^=]*[0-9]|\|")
"""What no plain number has a part of: two numbers with words, as in 5 ft 6 in; absolute values."""
_BETWEEN = re.compile(r"(?<![0-9.])[0-9.]*[0-9]([^0-9]+)(?=[.]?[0-9])")
_FRACTION_BARS = re.compile(r"\\[dtc]?frac ?\{([^{}]*)\} ?\{([^{}]*)\}")
_ONE_VALUE = re.compile(
    r"\s*(?:[-+*/^(){}=\u2248]|\\(?:approx|times|cdot|div|frac|text|mathrm)(?![a-zA-Z])|[a-zA-Z ])*[.]?"
)
"""What may stand between two numbers of one value; that they are two units or a sum is told elsewhere."""
_TWO_NAMES = re.compile(r"=.*(?:,(?![0-9]{3})|;|\\text ?\{ ?(?:and|or)|\b(?:and|or)\b).*=")
_EQUALS = re.compile(r"(?<![<>!=\\:])=(?!=)")


class Wanted(NamedTuple):
    """The right answer, read once."""

    text: str
    value: Value | None
    is_text: bool
    """Whether it is words, which are compared as such."""


@lru_cache(maxsize=4096)
def read_wanted(answer: str) -> Wanted:
    """Read the right answer: itself, or the final answer of a whole solution."""
    text = clean(answer)
    value = plain_value(text)
    if value is None and ("####" in answer or "boxed" in answer):
        try:
            text = clean(final_answers(answer, numbers=True)[-1])
        except NoAnswer as error:
            raise DataError(f"reward math: no final answer in {answer[-60:]!r}: {error}; mend the data") from error
        value = plain_value(text)
    words = _normal(text)
    return Wanted(text, value, value is None and bool(re.fullmatch(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*", words)))


def math(settings: MathSettings, domain: Any) -> TextReward:
    """Build the reward."""

    def score(samples: Sequence[Sample]) -> list[float]:
        missing = sum(not sample.answer.strip() for sample in samples)
        if missing:
            raise DataError(
                f"reward math: {missing} of {len(samples)} prompts carry no answer to compare with, such as "
                f"{next(one.prompt for one in samples if not one.answer.strip())[-60:]!r}; add answers to the data"
            )
        return [float(is_right(sample, settings)) for sample in samples]

    return TextReward(score, domain)


def is_right(sample: Sample, settings: MathSettings) -> bool:
    """Return whether a completion ends in the right answer; one that was cut off has no end."""
    if sample.truncated or len(sample.completion) > settings.max_characters:
        return False
    wanted = read_wanted(sample.answer)
    numbers = isinstance(wanted.value, Number)
    try:
        found = final_answers(sample.completion, numbers=numbers, marked_only=settings.marked_only)
    except NoAnswer:
        return False
    found = list(dict.fromkeys(found)) if settings.strict else found[-1:]
    return all(_is_same(wanted, clean(text), settings) for text in found)


def _is_same(wanted: Wanted, text: str, settings: MathSettings) -> bool:
    if len(text) > MAX_CHARACTERS:
        return False
    if _normal(text) == _normal(wanted.text):
        return True
    if wanted.is_text:
        return _same_option(wanted.text, text)
    value = plain_value(text)
    if value is None and isinstance(wanted.value, Number) and not _TWO_NAMES.search(text) and (sides := _sides(text)):
        value = sides[-1]
        if not all(same_value(value, side, settings.tolerance) for side in sides):
            return False
    if value is not None and wanted.value is not None:
        undone = settings.worked_out and _is_undone(wanted.value, value)
        return not undone and same_value(wanted.value, value, settings.tolerance)
    if _CHOICE.search(text) and not _CHOICE.search(wanted.text):
        return False
    if isinstance(wanted.value, Number) and (_TWO_UNITS.search(text) or _TWO_NAMES.search(text)):
        return False
    if settings.worked_out and (isinstance(wanted.value, Number) or _sides(wanted.text)) and _are_two(text):
        return False
    if _is_no_formula(text) or (settings.worked_out and _is_to_do(wanted, text)):
        return False
    return _same_formula(wanted.text, text, settings.formula_seconds)


@lru_cache(maxsize=16_384)
def _same_formula(wanted: str, got: str, seconds: float) -> bool:
    """Ask once for each pair: a group often gives the same answer many times."""
    return worker(os.getpid()).same(wanted, got, seconds)


def _normal(text: str) -> str:
    """Return a text for comparing it as it is written."""
    return " ".join(_TEXT_WORDS.sub(r"\1", text).split()).casefold()


def _same_option(wanted: str, text: str) -> bool:
    """Compare the letters of a multiple choice: (B), B., B) because; or the first word of: yes, because."""
    truth = _TRUTH.fullmatch(_normal(text))
    if truth and truth[1] == _normal(wanted):
        return True
    one, other = _OPTION.fullmatch(_normal(wanted)), _OPTION.fullmatch(_normal(text))
    if one is None or other is None or (other[1] and _ANOTHER.search(_normal(text), other.end(1) + 1)):
        return False
    return (one[1] or one[2]) == (other[1] or other[2])


def _sides(text: str) -> list[Value]:
    """Return the plain values in a chain of equations that ends in one, such as 5 and 5 in x = 5 = 2 + 3 = 5."""
    *before, last = (plain_value(clean(side)) for side in _EQUALS.split(text))
    return [side for side in (*before, last) if side is not None] if before and last is not None else []


def _is_undone(wanted: Value, got: Value) -> bool:
    """Return whether a whole number was wanted and a division was given, such as 14/2."""
    return isinstance(wanted, Number) and isinstance(got, Number) and wanted.value.denominator == 1 and got.division


def _are_two(text: str) -> bool:
    """Return whether numbers stand beside each other that no one value is made of, such as 5 | 6."""
    text = _FRACTION_BARS.sub(r"(\1)/(\2)", text)
    return "}{" in text.replace(" ", "") or any(not _ONE_VALUE.fullmatch(one) for one in _BETWEEN.findall(text))


def _is_to_do(wanted: Wanted, text: str) -> bool:
    """Return whether a formula is the question still: copying an integral into a box is no answer."""
    if wanted.value is not None and _TO_DO.search(text):
        return True
    return bool(_OPERATOR.search(text)) and not _OPERATOR.search(wanted.text)


def _is_no_formula(text: str) -> bool:
    """Return whether a text is not worth asking math-verify: hedged, words, too deep or too large."""
    outside = _ENVIRONMENT.sub(" ", _TEXT_WORDS.sub(" ", text))
    if _HEDGE.search(text) or any(word.lower() not in _FUNCTIONS for word in _WORD.findall(outside)):
        return True
    if not text.isprintable() or _TOWER.search(text) or _TOO_LARGE.search(text):
        return True
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH
