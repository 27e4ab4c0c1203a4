"""Settings of rewards that follow rules on the text: form, elements, length, repetition, language."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from rlkit.component import Settings
from rlkit.config.rewards import RewardSettings

Language = Literal["en", "de", "fr", "es", "it", "pt", "zh", "ja", "ko", "ru", "ar", "el", "he", "hi", "th"]
"""The languages that are told from each other: by their script, or by the commonest words."""


def _shows(phrase: str) -> str:
    """Return a keyword as it is.

    Raises:
        ValueError: nothing of it is seen, so that every text would hold it.
    """
    if all(character.isspace() or unicodedata.category(character) == "Cf" for character in phrase):
        raise ValueError(f"a keyword without a character that is seen, got {phrase!r}; write one, or leave it out")
    return phrase


Phrase = Annotated[str, Field(max_length=1000), AfterValidator(_shows)]


def _compile(pattern: str, *, searched: bool = False) -> str:
    """Return a regular expression as it is.

    Args:
        pattern: the expression.
        searched: whether it is looked for in texts, so that one that is found in any text tells nothing.

    Raises:
        ValueError: it does not compile, or tells nothing.
    """
    import regex

    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"the regular expression does not compile, got {pattern!r}: {error}; mend it") from error
    if searched and all(compiled.search(text, timeout=1.0) for text in ("", "\ue000", "\n\ue000")):
        raise ValueError(f"the regular expression is found in every text, got {pattern!r}; say what must be there")
    return pattern


class BandSettings(Settings):
    """A range of lengths and what it is worth."""

    at_least: int = Field(0, ge=0)
    """The shortest length of the band."""
    at_most: int | None = Field(None, ge=0)
    """The longest length of the band; none: there is no longest."""
    score: float = Field(1.0, ge=0, le=1)
    """What a text of such a length gets."""

    @model_validator(mode="after")
    def _is_a_range(self) -> BandSettings:
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most {self.at_most} lies below at_least {self.at_least}; exchange them")
        return self


class LengthSettings(Settings):
    """Bands of lengths; a text outside of all of them gets 0."""

    unit: Literal["characters", "words", "lines"] = "characters"
    """What is counted. A Chinese, Japanese or Thai character is a word of its own."""
    bands: tuple[BandSettings, ...] = Field(min_length=1)
    """The bands, none of which overlap."""

    @field_validator("bands")
    @classmethod
    def _apart(cls, bands: tuple[BandSettings, ...]) -> tuple[BandSettings, ...]:
        if not any(band.score for band in bands):
            raise ValueError("every band has a score of 0, and so has every text outside; give one a score above 0")
        ordered = sorted(bands, key=lambda band: band.at_least)
        for one, other in pairwise(ordered):
            if one.at_most is None or one.at_most >= other.at_least:
                end = "without end" if one.at_most is None else f"to {one.at_most}"
                raise ValueError(
                    f"bands contradict each other, got {one.at_least} {end} and {other.at_least} onward; "
                    "let one end before the next begins"
                )
        return bands


class FormatSettings(RewardSettings):
    """1 where the completion has a form, else 0: everything that is set must hold; length bands give their scores."""

    type: Literal["format"] = "format"
    domains: ClassVar[tuple[str, ...]] = ("chat",)

    pattern: str | None = Field(None, min_length=1)
    """A regular expression that the whole completion, outer white space aside, must match; ``.`` matches line ends."""
    tags: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][\w.-]*$")], ...] = ()
    """Tags such as think and answer: <think>..</think><answer>..</answer>, in this order, each once, none empty."""
    only_tags: bool = True
    """Nothing but white space stands outside of the tags."""
    json_schema: dict[str, Any] | None = None
    """The completion must be JSON, in a code fence or not, that this JSON Schema accepts; {} accepts any JSON."""
    language: Language | None = None
    """The completion must be in this language."""
    length: LengthSettings | None = None
    """Bands of lengths with their scores."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return pattern and _compile(pattern)

    @field_validator("tags")
    @classmethod
    def _each_tag_once(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tags)) < len(tags):
            raise ValueError(f"a tag stands twice, got {list(tags)}; each one is expected once")
        return tags

    @field_validator("json_schema")
    @classmethod
    def _is_a_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if schema is None else _check_schema(schema)

    @model_validator(mode="after")
    def _asks_for_something(self) -> FormatSettings:
        asked = (self.pattern, self.tags, self.language, self.length)
        if self.json_schema is None and not any(asked):
            raise ValueError("nothing is asked for; set pattern, tags, json_schema, language or length")
        if self.json_schema is not None and self.tags and self.only_tags:
            raise ValueError("tags and json_schema contradict each other; leave one out, or set only_tags to false")
        return self


_NO_SCHEMAS = ("const", "enum", "default", "examples")
"""Keywords of a JSON Schema whose values are data."""
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
"""Keywords whose values are schemas by name."""


def _check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON Schema as it is.

    Raises:
        ValueError: it is none, of an unknown kind, or it names another document or something that it does not hold.
    """
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    kind = Draft202012Validator
    if "$schema" in schema:
        kind = validator_for(schema, default=None) if isinstance(schema["$schema"], str) else None
    if kind is None:
        known = "https://json-schema.org/draft/2020-12/schema"
        raise ValueError(f"$schema names an unknown kind of schema, got {schema['$schema']!r}; write {known}")
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        place = ".".join(map(str, error.path)) or "the schema"
        raise ValueError(f"{place} is no JSON Schema: {error.message}; mend it") from error
    parts = list(_schemas(schema))
    references = [part[key] for part in parts for key in ("$ref", "$dynamicRef") if isinstance(part.get(key), str)]
    far = [reference for reference in references if not reference.startswith("#")]
    if far:
        raise ValueError(f"$ref must stay inside of the schema, got {far[0]!r}; write it out")
    moved = any(isinstance(part.get(name), str) for part in parts for name in ("$id", "id"))  # what "#" means
    if not moved:
        _check_references(schema, kind, references)
    if any("unevaluatedProperties" in part for part in parts) and any("patternProperties" in part for part in parts):
        raise ValueError("unevaluatedProperties beside patternProperties has no time limit; use additionalProperties")
    return schema


def _check_references(schema: dict[str, Any], kind: Any, references: list[str]) -> None:
    """Look for what references name.

    Raises:
        ValueError: something is not there.
    """
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import specification_with

    whole = Resource.from_contents(schema, specification_with(kind.META_SCHEMA["$schema"]))
    resolver = Registry().with_resource("", whole).crawl().resolver()
    for reference in references:
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ValueError(f"$ref names nothing in the schema, got {reference!r}; write e.g. #/$defs/name") from error


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield a schema and all schemas in it."""
    if isinstance(schema, list):
        for value in schema:
            yield from _schemas(value)
    elif isinstance(schema, dict):
        yield schema
        for key, value in schema.items():
            named = key in _BY_NAME and isinstance(value, dict)
            for inner in value.values() if named else [] if key in _NO_SCHEMAS else [value]:
                yield from _schemas(inner)


class ElementSettings(Settings):
    """One thing that a text must hold, said in any of several ways, or a list of things that it must hold all."""

    any: tuple[Phrase, ...] = ()
    """Keywords of which one must stand in the text; case does not count, a keyword is never part of a longer word."""
    all: tuple[Phrase, ...] = ()
    """Keywords that must all stand in the text."""
    pattern: str | None = Field(None, min_length=1)
    """A regular expression that must match somewhere; case counts unless it begins with (?i)."""
    weight: float = Field(1.0, gt=0)
    """How much the element counts beside the others of its part."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return pattern and _compile(pattern, searched=True)

    @model_validator(mode="after")
    def _names_something(self) -> ElementSettings:
        if not (self.any or self.all or self.pattern):
            raise ValueError("an element that names nothing; set any, all or pattern")
        return self


class StructureSettings(Settings):
    """How a text is laid out; the score is the share of what is asked for that holds."""

    line_breaks: int | None = Field(None, ge=1)
    """At least so many line ends between lines with text."""
    paragraphs: int | None = Field(None, ge=1)
    """At least so many paragraphs, parted by blank lines."""
    list_items: int | None = Field(None, ge=1)
    """At least so many lines that begin with -, *, a bullet or a number."""
    emphasis: int | None = Field(None, ge=1)
    """At least so many **bold** or __bold__ pieces."""
    headings: int | None = Field(None, ge=1)
    """At least so many lines that begin with # signs."""
    sentences: int | None = Field(None, ge=1)
    """At least so many sentences: texts that end with a mark such as . ! ?"""
    ends_with_mark: bool = False
    """The text must end with such a mark, so that it was not broken off."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> StructureSettings:
        if not self.model_dump(exclude_defaults=True):
            raise ValueError("nothing is asked for; set line_breaks, list_items, emphasis, sentences or another")
        return self


class PartSettings(Settings):
    """One part of a checklist: the mean of what is set, from 0 to 1, and 0 where a forbidden phrase stands."""

    weight: float = Field(1.0, ge=0)
    """The part's score is multiplied by this before parts are added."""
    elements: tuple[ElementSettings, ...] = ()
    """What the text must hold; the weighted share that it does."""
    structure: StructureSettings | None = None
    """How it must be laid out."""
    length: LengthSettings | None = None
    """How long it must be."""
    forbidden: tuple[Phrase, ...] = ()
    """Keywords that make the part 0."""
    forbidden_patterns: tuple[str, ...] = ()
    """Regular expressions that make the part 0 where they match."""

    @field_validator("forbidden_patterns")
    @classmethod
    def _compile_all(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_compile(pattern, searched=True) for pattern in patterns)

    @model_validator(mode="after")
    def _asks_for_something(self) -> PartSettings:
        if not (self.elements or self.structure or self.length or self.forbidden or self.forbidden_patterns):
            raise ValueError("nothing is asked for; set elements, structure, length or forbidden")
        return self


class ChecklistSettings(RewardSettings):
    """A list of rules in named parts, such as format, elements, length and safety; their weighted scores are added."""

    type: Literal["checklist"] = "checklist"
    domains: ClassVar[tuple[str, ...]] = ("chat",)

    parts: Mapping[str, PartSettings] = Field(min_length=1)
    """The parts by name; the names appear in logs and in the reward lab."""
    forbidden: tuple[Phrase, ...] = ()
    """Keywords that make the whole checklist 0."""

    @model_validator(mode="after")
    def _counts(self) -> ChecklistSettings:
        if not sum(part.weight for part in self.parts.values()) > 0:
            raise ValueError("the weights of the parts add up to 0; give one of them a weight above 0")
        return self


class DiversitySettings(RewardSettings):
    """How far a completion differs from the others of its group: 1 / (times each of its n-grams is said), on average.

    Weighted by length, a group's scores average to its distinct-n (Li et al. 2016, arXiv 1510.03055).
    """

    type: Literal["diversity"] = "diversity"
    domains: ClassVar[tuple[str, ...]] = ("chat",)

    ngram: int = Field(2, ge=1, le=10)
    """Words of an n-gram."""


class RepetitionSettings(RewardSettings):
    """Minus the share of a completion's n-grams that it has said before: 0 where all differ, towards -1 in a loop."""

    type: Literal["repetition"] = "repetition"
    domains: ClassVar[tuple[str, ...]] = ("chat",)

    ngram: int = Field(3, ge=1, le=20)
    """Words of an n-gram."""


class LengthPenaltySettings(RewardSettings):
    """Soft overlong punishment: 0, then falling to -1 over the last tokens (DAPO, arXiv 2503.14476, section 3.4)."""

    type: Literal["length_penalty"] = "length_penalty"
    domains: ClassVar[tuple[str, ...]] = ("chat",)

    max_tokens: int = Field(20_480, ge=1)
    """Tokens from which the penalty is -1, the end token included."""
    soft_tokens: int = Field(4_096, ge=1)
    """Over so many tokens before that it falls from 0 to -1."""

    @model_validator(mode="after")
    def _fits(self) -> LengthPenaltySettings:
        if self.soft_tokens > self.max_tokens:
            raise ValueError(f"soft_tokens {self.soft_tokens} lie before 0 tokens; take at most max_tokens")
        return self


class LanguageConsistencySettings(RewardSettings):
    """The share of the completion's letters that are in the prompt's script, or in a language's; 1 without letters."""

    type: Literal["language_consistency"] = "language_consistency"
    domains: ClassVar[tuple[str, ...]] = ("chat",)

    language: Language | None = None
    """The language whose script is expected; none: the script that most of the prompt is in."""
