r"""Find the final answer in a completion: boxed, after ``####``, after "the answer is", or the last number.

Everything here is one linear pass over the text, however hostile it is. Several answers are all returned, so that a
completion that names two different ones can be refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from rlkit.chat.verifiers.math_values import clean, plain_value

MAX_ANSWERS = 50
"""A completion with more boxes or marks than this has no final answer."""
TAIL = 4_000
"""Where nothing marks the answer it is looked for in so many last characters."""

_BRACES = re.compile(r"\\+(?:boxed|fbox) ?\{|\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"^ {0,3}#### ?(\S[^\n]*)$", re.MULTILINE)
_COLON = "[:\uff1a]"
_SAYS = re.compile(
    rf"(?:\b(?:answer|correct (?:option|choice))\b(?: to [^.:\n]{{1,80}}?| here)?[*_]{{0,2}} ?(?:is|are|was|=|{_COLON})"
    rf"|(?:\u7b54\u6848|\u7b54\u3048) ?(?:[\u662f\u4e3a\u306f]|{_COLON}))"
    rf"(?:[*_]|{_COLON}){{0,4}}\s{{0,4}}"
    r"(?:(?:therefore|thus|then|simply|just|exactly|indeed|equal to"
    r"|about|approximately|roughly|option|choice)\b,?\s?){0,3}([^\n]{1,300})",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile("(?<=\\S)[.;!?\u3002\uff01\uff1f](?=\\s|$|\\*)")
_REASON = re.compile(
    r",? \b(?:because|since|as|so|which|after|when|for|where|from)\b|,(?! ?[-0-9({\\])| \((?![-0-9]|[A-Za-z]\))"
)
_LIST_ITEM = re.compile(r"[0-9]+[.)] +[^\W\d_]")
_CJK = "\u3040-\u30ff\u3400-\u9fff"
_NUMBER = re.compile(
    rf"(?<![^\W{_CJK}])(?<!\.)(?:(?<![0-9)}}] )[-\u2212\u2013] ?)?(?:\\?[$€£¥₹])?"
    r"(?:\\[dt]?frac\{-?[0-9.]+\}\{[0-9.]+\}"
    r"|(?:[0-9]+ )?[0-9]+/[0-9]+"
    r"|(?:[0-9]{1,3}(?:(?:,|\{,\})[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:e[-+]?[0-9]{1,3}\b)?|\.[0-9]+)"
    # a unit, or a variable: what follows tells that it is no number
    r"(?: ?\\?%| (?:thousand|million|billion|trillion)\b|[^\W\d_]{1,20})?",
)
_GROUP = re.compile(r"(?:\\[{(]|[\[({])[^()\[\]{}\n]{1,200}(?:\\[})]|[\])}])")
_MATH = re.compile(r"\$\$([^$]{1,300})\$\$|\$([^$\n]{1,300})\$|\\\(([^\n]{1,300}?)\\\)|\\\[([^\n]{1,300}?)\\\]")
_EITHER = re.compile(r"[0-9][^.\n]{0,40}\b(?:or|either)\b[^.\n]{0,40}$", re.IGNORECASE)
_OR = re.compile(r"\W*or\b", re.IGNORECASE)
_NEXT = re.compile(r"\s*(?:,|;|/|and\b|or\b)\s*(?:and\b|or\b)?\s*(?:\$|\\\(|[a-z] ?=|[0-9])")
_PART_OF_MORE = re.compile(
    r"(?:[0-9)}\]%]|(?<![^\W_])[a-zA-Z])(?: [-*\u2212\u2013] |[-*\u2212\u2013]| ?[+/\u00d7\u00f7\u00b7] ?)"
    r"(?:\\?[$€£¥₹])?$|(?:\\(?:times|cdot|div|pm)|[\^_+\u221a])[ {(]*$|\}\{$"
    r"|[0-9](?:[,:]|(?:[|;&~\u3001\u6216]|\.\.\.) ?)$"
    r"|[a-zA-Z][({]$(?<!text\{)(?<!bf\{)(?<!rm\{)"
    r"|[0-9%] (?:to|and|through) \$?$"
    r"|\b(?:minus|negative|plus|times|divided by|(?:less|more|fewer|greater|other) than|log|ln|sin|cos|tan)[ $*]*$"
    r"|(?:\b(?:not|never|cannot)|n['\u2019]t)\b[^.,;:!?\n=0-9]{0,15}$",
    re.IGNORECASE,
)
"""What before a number says that it is an operand, an index, one end of a range, or denied."""
_GOES_ON = re.compile(
    r" ?(?:\^|[²³⁰-⁹½⅓⅔¼¾π√\u00d7\u00f7\u00b7]|\\(?:pi|sqrt|times|cdot|div|theta|pm)|/ ?(?:[0-9({\\]|[a-zA-Z]\b))"
    r"| \* [\w({]|\*[\w({]|\*\*[\w({]| [b-fi-kn-rt-zD-HO-RT-Z](?![\w'.])"
    r"| (?:squared|cubed|and a half|plus|minus|times|divided by)\b"
)
"""What after a number says that it is not all of the value."""
_ONLY_NUMBERS = re.compile(r"[-+0-9.,;/$%\s]*")


class NoAnswer(ValueError):
    """A completion whose final answer cannot be told."""


def final_answers(completion: str, *, numbers: bool, marked_only: bool = False) -> list[str]:
    """Return the final answer of a completion; several where it gives several.

    Args:
        completion: what the model said; what stands before ``</think>`` does not count, and where there are
            ``<answer>`` tags only what stands in them does.
        numbers: whether a number is looked for, so that the last one may be taken.
        marked_only: take nothing that is neither boxed nor marked nor announced.

    Raises:
        NoAnswer: there is none, or it is not whole.
    """
    if "<think>" in completion and "</think>" not in completion:
        raise NoAnswer("the thought does not end")
    spoken = completion.rpartition("</think>")[2]
    found = []
    for region in _regions(spoken):
        found += _marked(region, numbers) or ([] if marked_only and region is spoken else [_unmarked(region, numbers)])
    if not found or len(found) > MAX_ANSWERS:
        raise NoAnswer("nothing marks an answer" if not found else "too many answers")
    return found


def _regions(text: str) -> list[str]:
    """Return what stands in answer tags; the whole text where there are none."""
    pieces = text.split("<answer>")[1:]
    inside = [piece.partition("</answer>")[0] for piece in pieces if "</answer>" in piece]
    return inside or [text]


def _marked(text: str, numbers: bool) -> list[str]:
    boxes = boxed(text)
    lines = (match[1] for match in _HASHES.finditer(text) if not _LIST_ITEM.match(match[1]))
    hashes = _telling(lines, keep_last=not boxes and not numbers)  # #### also begins headings
    return [*boxes, *hashes, *_telling(_announced(text), keep_last=not boxes and not hashes)]


def _telling(texts: Iterable[str], *, keep_last: bool) -> list[str]:
    """Return the plain values among texts, and the last text whatever it is where nothing else tells the answer.

    Raises:
        NoAnswer: there are too many.
    """
    found = list(islice(texts, MAX_ANSWERS + 1))
    if len(found) > MAX_ANSWERS:
        raise NoAnswer("too many answers")
    last = len(found) - 1
    return [text for at, text in enumerate(found) if (at == last and keep_last) or plain_value(clean(text))]


def boxed(text: str) -> list[str]:
    r"""Return what stands in the innermost ``\boxed{...}``, nested braces and all.

    Raises:
        NoAnswer: a box does not end.
    """
    found: list[str] = []
    depths: list[int] = []  # where each open box begins, or -1 for other braces and boxes around boxes
    if "boxed" not in text and "fbox" not in text:
        return found
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "}":
            start = depths.pop() if depths else -1
            found += [text[start : match.start()]] if start >= 0 else []
        elif token == "{":
            depths.append(-1)
        elif token.endswith("{") and "box" in token:
            if depths and depths[-1] >= 0:
                depths[-1] = -1
            depths.append(match.end())
    if any(start >= 0 for start in depths):
        raise NoAnswer("a box does not end")
    return found


def _announced(text: str) -> Iterator[str]:
    for match in _SAYS.finditer(text):
        said = match[1].strip()
        while again := _SAYS.match(said.removeprefix("The ").removeprefix("the ").removeprefix("final ")):
            said = again[1].strip()
        end = _SENTENCE_END.search(said)
        said = (said[: end.start()] if end and not _OR.match(said[end.end() :]) else said).strip()
        if "box{" in said or "boxed" in said:
            continue
        if plain_value(clean(said)) is None:
            math = _MATH.match(said)
            alone = math and not _NEXT.match(said[math.end() :])
            said = math[0] if math and alone else _REASON.split(said)[0]
        if said:
            yield said


def _unmarked(text: str, numbers: bool) -> str:
    """Return the answer of a text that marks none: all of it where that is a value, else its last one.

    Raises:
        NoAnswer: there is none, or there are several.
    """
    whole = text.strip()
    if len(whole) <= 200 and plain_value(clean(whole)) is not None:
        return whole
    tail = whole[-TAIL:]
    if not numbers:
        return _last_expression(whole, tail)
    if _ONLY_NUMBERS.fullmatch(tail):
        raise NoAnswer("several numbers and no word")
    return _last_number(tail)


def _last_expression(whole: str, tail: str) -> str:
    found = [*_MATH.finditer(tail)] or [*_GROUP.finditer(tail)]
    if "\n" not in whole and len(whole) <= 200 and not found:
        return whole
    if not found:
        return whole.rpartition("\n")[2][-200:]
    return found[-1][0]


def _last_number(tail: str) -> str:
    last = None
    for last in _NUMBER.finditer(tail):  # noqa: B007
        pass
    if last is None:
        raise NoAnswer("no number")
    if _EITHER.search(tail[max(0, last.start() - 100) : last.start()]):
        raise NoAnswer("one number or another")
    if _PART_OF_MORE.search(tail[max(0, last.start() - 60) : last.start()]) or _GOES_ON.match(tail, last.end()):
        raise NoAnswer("the last number is part of something")
    return last[0]
