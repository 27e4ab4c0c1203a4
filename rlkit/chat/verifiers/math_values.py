"""Plain values: a short text as an exact number, or as a tuple, interval, set or list of numbers. Light: no sympy.

Thousands separators, currencies, percent signs, units and the LaTeX around them are part of how people write a number.
A unit is not compared: 5 cm and 5 m are both 5. Only the ten ASCII digits are digits.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, NamedTuple

MAX_CHARACTERS = 300
"""Longer texts are no plain value."""
MAX_EXPONENT = 300
"""Of a power of ten."""


class Number(NamedTuple):
    """A number as it was written."""

    value: Fraction
    percent: bool = False
    """Whether a percent sign follows; the value is what stands before it."""
    decimal: bool = False
    """Whether it was written with a decimal point, so that it may be rounded."""
    division: bool = False
    """Whether it was written as a fraction that is a whole number or not in lowest terms, such as 14/2."""


class Several(NamedTuple):
    """Numbers that belong together."""

    numbers: tuple[Number, ...]
    brackets: str
    """The pair around them: ``()``, ``[]``, ``[)``, ``(]``, ``{}`` for a set; empty for a bare list."""


Value = Number | Several

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+|[0-9]+)"
_UNSIGNED = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?) ?(?:(?P<whole>[0-9]+) +(?=[0-9]+ ?/))?(?P<top>{_UNSIGNED})"
    rf"(?: ?/ ?(?P<bottom>{_UNSIGNED})|e(?P<power>[-+]?[0-9]{{1,3}}))?"
)
_TIMES_TEN = re.compile(r" ?(?:\*|x|\\times|\\cdot) ?10 ?(?:\^|\*\*) ?\{?(-?[0-9]{1,3})\}?")
_FRACTION = re.compile(r"\\[dtc]?frac ?(?:\{ ?([^{}]{1,40}?) ?\}|([0-9])) ?(?:\{ ?([^{}]{1,40}?) ?\}|([0-9]))")
_UNIT = re.compile(r" ?\^? ?°?(?: ?(?:[^\W\d_]+\.?|[/\\*·²³°'-])(?: ?\^ ?\{?[0-9]\}?)?){0,8}")
_NO_UNIT = re.compile(
    r"\b(?:or|and|to|either|not|than|plus|minus|times|divided|squared|cubed|nan|inf|infinity|pi)\b", re.IGNORECASE
)
_LARGE = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3}
_SYMBOL = re.compile(r"(?<![^\W\d_])[a-zA-Z\u0391-\u03a8\u03b1-\u03bb\u03bd-\u03c9](?![^\W\d_])")
_WORDS = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf|operatorname|rm|textit) ?\{([^{}]*)\}")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_CURRENCY = re.compile(r"(?:US|A|C|NZ|HK)?\\?[$€£¥₹₩₽] ?|(?:USD|EUR|GBP|Rs\.?) ?(?=[0-9])")
# minus signs, times, spaces, what Chinese is set with, fractions, the empty set
_SIGNS: dict[int, Any] = str.maketrans(
    "\u2212\u2013\ufe63\uff0d\u00d7\u00b7\u00a0\u202f\uff0c\uff08\uff09\uff1d\uff05", "----**  ,()=%"
)
_SIGNS |= {ord(sign): f" {top}/{bottom}" for sign, top, bottom in zip("½⅓⅔¼¾⅕⅛", "1121311", "2334458")}
_SIGNS |= {ord("\u2205"): r"\emptyset"}
_RAISED = re.compile("[⁻]?[⁰¹²³⁴-⁹]+")
_LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]{0,20})\\(?:overline|bar) ?\{([0-9]{1,20})\}")
_JOINED = re.compile(r",? ?(?:\\text ?\{ ?(?:or|and) ?\}|\b(?:or|and)\b) ?")
_NAMED = re.compile(r"^[a-zA-Z](?:_\{?[0-9]\}?)? ?= ?")
_BRACKETS = ((r"\langle", r"\rangle"), (r"\{", r"\}"), ("{", "}"), ("(", ")"), ("[", "]"), ("[", ")"), ("(", "]"))
_UNITS = frozenset("mgshlLKNJWVACFbB")
"""Single letters that are units; any other one is a variable."""


def clean(text: str) -> str:
    r"""Return a text without what surrounds a value: ``$..$``, emphasis, spacing commands, a final full stop."""
    text = _RAISED.sub(lambda match: f"^{{{match[0].translate(_LOWERED)}}}", text.translate(_SIGNS).strip())
    text = re.sub(r"√ ?([0-9]+|[a-z])(?![\w.])", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<=[0-9])'(?=[0-9]{3}(?![0-9]))", ",", text.replace(r"\varnothing", r"\emptyset"))
    text = re.sub(r"\\(?:left|right|displaystyle|!)(?![a-zA-Z])|\{,\}", lambda m: "," if m[0] == "{,}" else "", text)
    text = re.sub(r"(?<!\\)\\[,;: ]|\\q?quad(?![a-zA-Z])|~|\s+", " ", text).strip()
    for _ in range(4):
        before = text
        text = text.strip().rstrip("。").strip()
        text = text[:-1].rstrip() if text.endswith(".") else text
        for start, end in _DELIMITERS:
            inside = text[len(start) : -len(end)]
            if len(text) > len(start + end) and text.startswith(start) and text.endswith(end) and start not in inside:
                text = inside
        if text == before:
            break
    return re.sub(r"^(?:negative|minus) (?=\\?[$0-9])", "-", text, flags=re.IGNORECASE)


def plain_value(text: str) -> Value | None:
    """Read a cleaned text.

    Returns:
        None where it is not a plain value; what it is then, sympy may know.
    """
    if not text or len(text) > MAX_CHARACTERS:
        return None
    return plain_number(text) or _several(text)


def plain_number(text: str) -> Number | None:
    """Read one number, with its currency, percent sign or unit."""
    text = _WORDS.sub(lambda match: f" {match[1].strip()} ", text).strip()
    text = _REPEATING.sub(_as_repeating, _FRACTION.sub(_as_division, text))
    sign, text = ("-", text[1:].lstrip()) if re.match(r"- ?(?:\\?[$€£¥₹]|\(|USD)", text) else ("", text)
    text = _CURRENCY.sub("", text, count=1) if _CURRENCY.match(text) else text
    match = _NUMBER.match(text)
    if not match:
        return None
    number = _read(match, sign)
    rest = text[match.end() :]
    if number is not None and (power := _TIMES_TEN.match(rest)):
        number, rest = _scaled(number, int(power[1])), rest[power.end() :]
    return number and _with_unit(number, rest)


def _as_division(match: re.Match[str]) -> str:
    return f" {match[1] or match[2]}/{match[3] or match[4]} "


def _as_repeating(match: re.Match[str]) -> str:
    r"""Return 0.1\\overline{6} as 15/90, in lowest terms."""
    whole, first, repeated = match[1] or "0", match[2], match[3]
    bottom = 10 ** len(first) * (10 ** len(repeated) - 1)
    return str(Fraction(int(whole + first + repeated) - int(whole + first), bottom))


def _read(match: re.Match[str], sign: str) -> Number | None:
    top, decimal = _exact(match["top"]), "." in match["top"]
    bottom = _exact(match["bottom"]) if match["bottom"] else Fraction(1)
    if bottom == 0 or (match["whole"] and not match["bottom"]):
        return None
    value = top / bottom + (int(match["whole"]) if match["whole"] else 0)
    lowest = match["bottom"] is None or value.denominator == bottom
    if sign == "-" or match["sign"] == "-":
        value = -value
    number = Number(value, decimal=decimal, division=not lowest)
    return _scaled(number, int(match["power"])) if match["power"] else number


def _exact(text: str) -> Fraction:
    return Fraction(re.sub(r"[ ,]", "", text).rstrip(".") or "0")


def _scaled(number: Number, power: int) -> Number | None:
    if abs(power) > MAX_EXPONENT:
        return None
    return number._replace(value=number.value * Fraction(10) ** power)


def _with_unit(number: Number, rest: str) -> Number | None:
    """Take what follows a number as its percent sign or its unit; None: it is neither."""
    rest = rest.strip()
    percent = re.match(r"\\?%|percent(?:age points?|age)?\b|pct\b", rest, re.IGNORECASE)
    if percent:
        number, rest = number._replace(percent=True), rest[percent.end() :].strip()
    if not rest or _CURRENCY.fullmatch(rest):
        return number
    rest = rest.replace(r"^\circ", "°").replace(r"^{\circ}", "°")
    large = re.match(r"((?i:thousand|million|billion|trillion))s?\b|(k)\b", rest)
    if large:
        number = number._replace(value=number.value * 10 ** _LARGE[(large[1] or large[2]).lower()])
        rest = rest[large.end() :].strip()
    symbols = [found[0] for found in _SYMBOL.finditer(rest)]
    if _NO_UNIT.search(rest) or not _UNIT.fullmatch(rest) or any(one not in _UNITS for one in symbols) or "\\" in rest:
        return None
    return number


def _several(text: str) -> Several | None:
    brackets = ""
    for start, end in _BRACKETS:
        if text.startswith(start) and text.endswith(end) and len(text) > 2:
            text, brackets = text[len(start) : -len(end)], "()" if start == r"\langle" else start[-1] + end[-1]
            break
    if not brackets and _JOINED.search(text):
        text, brackets = _JOINED.sub(",", text), "{}"
    parts = [_NAMED.sub("", part.strip()) for part in re.split(r"[,;]", text)]
    numbers = [plain_number(part) for part in parts]
    if len(parts) < 2 and brackets != "{}":
        single = numbers[0] if brackets else None
        return Several((single,), brackets) if single else None
    found = tuple(number for number in numbers if number is not None)
    return Several(found, brackets) if len(found) == len(parts) else None


def same_value(wanted: Value, got: Value, tolerance: float) -> bool:
    """Return whether two values are equal; lists and sets in any order, tuples and intervals in theirs.

    Args:
        wanted: the right one.
        got: the other.
        tolerance: how far a decimal may be off, relative to answers below 1 and absolute above.
    """
    if isinstance(wanted, Number) and isinstance(got, Number):
        return _same_number(wanted, got, tolerance)
    if isinstance(got, Number):
        return isinstance(wanted, Several) and _is_single(wanted) and _same_number(wanted.numbers[0], got, tolerance)
    if isinstance(wanted, Number):
        return _is_single(got) and _same_number(wanted, got.numbers[0], tolerance)
    ordered = "{}" not in (wanted.brackets, got.brackets) and bool(wanted.brackets or got.brackets)
    if len(wanted.numbers) != len(got.numbers) or not _same_brackets(wanted.brackets, got.brackets):
        return False
    pairs = (
        zip(wanted.numbers, got.numbers)
        if ordered
        else zip(sorted(wanted.numbers, key=_order), sorted(got.numbers, key=_order))
    )
    return all(_same_number(one, other, tolerance) for one, other in pairs)


def _is_single(value: Several) -> bool:
    return len(value.numbers) == 1 and value.brackets in ("()", "[]", "{}")


def _same_brackets(wanted: str, got: str) -> bool:
    return wanted == got or (wanted in ("", "{}") and got in ("", "{}")) or (wanted == "()" and got == "")


def _order(number: Number) -> Fraction:
    return number.value


def _same_number(wanted: Number, got: Number, tolerance: float) -> bool:
    """Compare exactly, or within the tolerance where one is a decimal; 20 % is 20 and also .2."""
    offered = {got.value, got.value / 100} if got.percent and not wanted.percent else {got.value}
    if wanted.percent and not got.percent:
        offered |= {got.value * 100}
    if wanted.value in offered:
        return True
    if not (wanted.decimal or got.decimal):
        return False
    bound = Fraction(tolerance) * min(Fraction(1), abs(wanted.value)) * Fraction(1_000_001, 1_000_000)
    return any(abs(value - wanted.value) <= bound for value in offered)
