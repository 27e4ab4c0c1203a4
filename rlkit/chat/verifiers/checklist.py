"""The reward ``checklist``: what a text must hold, how it is laid out, how long it is, and what it must not say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import mul
from typing import Any

from rlkit.chat.verifiers.patterns import found, says
from rlkit.chat.verifiers.text_form import band_score
from rlkit.config.rules import ChecklistSettings, ElementSettings, PartSettings, StructureSettings
from rlkit.policy.text_rewards import Sample, Scores, TextReward

_MARKS = r".!?\u2026\u3002\uff01\uff1f\u0964\u061f\u06d4"
_CLOSERS = r"\"'\u201d\u2019\u00bb\u300d\u300f\u300b\u3011\uff09)\]*_`"
_CJK = r"[\u3040-\u30ff\u3400-\u9fff\uff00-\uffef]"
_ITEM = rf"(?:[-*+\u2013]|\(?[0-9]{{1,3}}[.)])(?:[^\S\n]+|(?={_CJK}))|(?:[\u2022\u00b7\u25cf\u25aa]|[0-9]{{1,3}}\u3001)"
_COUNTED = {
    "paragraphs": re.compile(r"\S[^\n]*(?:\n[^\S\n]*\S[^\n]*)*"),
    "list_items": re.compile(rf"^[^\S\n]*(?:{_ITEM})[^\S\n]*\S", re.MULTILINE),
    "emphasis": re.compile(r"\*\*[^\s*][^*\n]{0,200}\*\*|(?<!\w)__[^\s_][^_\n]{0,200}__(?!\w)"),
    "headings": re.compile(r"^#{1,6}[^\S\n]+\S", re.MULTILINE),
    "sentences": re.compile(
        rf"\w[^\w{_MARKS}\n]{{0,10}}(?:[{_MARKS}]+(?=[\s{_CLOSERS}]|\Z)|[.!?]*[{_MARKS.removeprefix('.!?')}][{_MARKS}]*)"
    ),
}
_ENDS = re.compile(rf"[{_MARKS}][{_CLOSERS}\s\u2600-\u27bf\U0001f000-\U0001faff\ufe0f]*\Z")


def checklist(settings: ChecklistSettings, domain: Any) -> TextReward:
    """Build the reward; its parts are those of the settings, unweighted."""

    def score(samples: Sequence[Sample]) -> Scores:
        dead = [any(says(phrase, sample.completion) for phrase in settings.forbidden) for sample in samples]
        parts = {
            name: [0.0 if zero else part_score(sample.completion, part) for sample, zero in zip(samples, dead)]
            for name, part in settings.parts.items()
        }
        weights = [part.weight for part in settings.parts.values()]
        return Scores([sum(map(mul, weights, values)) for values in zip(*parts.values())], parts)

    return TextReward(score, domain)


def part_score(text: str, part: PartSettings) -> float:
    """Return the mean of what a part asks for, from 0 to 1; 0 where the text is empty or says what is forbidden."""
    if not text.strip() or any(says(phrase, text) for phrase in part.forbidden):
        return 0.0
    if any(found(pattern, text) for pattern in part.forbidden_patterns):
        return 0.0
    scores = []
    if part.elements:
        held = sum(element.weight for element in part.elements if holds(text, element))
        scores.append(held / sum(element.weight for element in part.elements))
    if part.structure is not None:
        scores.append(structure_score(text, part.structure))
    if part.length is not None:
        scores.append(band_score(text, part.length))
    return sum(scores) / len(scores) if scores else 1.0


def holds(text: str, element: ElementSettings) -> bool:
    """Return whether a text holds one of ``any``, all of ``all``, and what ``pattern`` describes, as far as given."""
    return (
        (not element.any or any(says(word, text) for word in element.any))
        and all(says(word, text) for word in element.all)
        and (element.pattern is None or found(element.pattern, text))
    )


def structure_score(text: str, settings: StructureSettings) -> float:
    """Return the share of what is asked for that holds."""
    text = text.strip()
    held = [bool(_ENDS.search(text[-50:]))] if settings.ends_with_mark else []
    if settings.line_breaks is not None:
        lines = sum(bool(line.strip()) for line in text.split("\n"))
        held.append(lines - 1 >= settings.line_breaks)
    for name, pattern in _COUNTED.items():
        wanted = getattr(settings, name)
        if wanted is not None:
            held.append(sum(1 for _ in pattern.finditer(text)) >= wanted)
    return sum(held) / len(held)
