"""The reward ``format``: expressions, tags, JSON, language and length; and what other rules count lengths by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from rlkit.chat.verifiers.json_text import accepts
from rlkit.chat.verifiers.languages import is_in
from rlkit.chat.verifiers.patterns import matches, words
from rlkit.config.rules import FormatSettings, LengthSettings
from rlkit.policy.text_rewards import Sample, Scores, TextReward

Check = Callable[[Sample], float]


def format_reward(settings: FormatSettings, domain: Any) -> TextReward:
    """Build the reward; its parts are what the settings ask for, and its score is their product."""
    checks = dict(_checks(settings))

    def score(samples: Sequence[Sample]) -> Scores:
        parts = {name: [float(check(sample)) for sample in samples] for name, check in checks.items()}
        return Scores([math.prod(values) for values in zip(*parts.values())], parts)

    return TextReward(score, domain)


def _checks(settings: FormatSettings) -> list[tuple[str, Check]]:
    pattern, schema, length, language = settings.pattern, settings.json_schema, settings.length, settings.language
    checks: list[tuple[str, Check]] = []
    if pattern is not None:
        checks.append(("pattern", lambda sample: matches(pattern, sample.completion.strip())))
    if settings.tags:
        checks.append(("tags", lambda sample: has_tags(_opened(sample, settings.tags[0]), settings)))
    if schema is not None:
        accepted = accepts(schema)
        checks.append(("json_schema", lambda sample: accepted(sample.completion)))
    if language is not None:
        checks.append(("language", lambda sample: is_in(sample.completion, language)))
    if length is not None:
        checks.append(("length", lambda sample: band_score(sample.completion, length)))
    return checks


def band_score(text: str, settings: LengthSettings) -> float:
    """Return the score of the band that a text's length lies in; 0 where it lies in none."""
    text = text.strip()
    if settings.unit == "lines":
        length = sum(bool(line.strip()) for line in text.split("\n"))
    else:
        length = len(words(text)) if settings.unit == "words" else len(text)
    inside = (
        band for band in settings.bands if band.at_least <= length and (band.at_most is None or length <= band.at_most)
    )
    return next((band.score for band in inside), 0.0)


# ---- tags


def _opened(sample: Sample, first: str) -> str:
    """Return the completion, with the first tag where a chat template has opened it already."""
    tag = f"<{first}>"
    return tag + sample.completion if sample.prompt.rstrip().endswith(tag) else sample.completion


def has_tags(text: str, settings: FormatSettings) -> bool:
    """Return whether a text holds the tags in order, each once and none empty."""
    at = 0
    for tag in settings.tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1:
            return False
        start, end = text.index(opening), text.index(closing)
        if start < at or end < start or not text[start + len(opening) : end].strip():
            return False
        if settings.only_tags and text[at:start].strip():
            return False
        at = end + len(closing)
    return not (settings.only_tags and text[at:].strip())
