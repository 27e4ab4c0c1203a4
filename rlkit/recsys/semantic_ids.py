"""Semantic IDs: the tokens that stand for each item, and the file that keeps them beside a model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from rlkit.config.quantizers import GivenSettings, ResidualKMeansSettings
from rlkit.errors import DataError
from rlkit.recsys.data.catalog import RecommendationData
from rlkit.run_directory import write_atomically

Normalization = Literal["children", "vocabulary"]

MAX_LEVELS = 8
LEVEL_LETTERS = "abcdefgh"
FILE_FORMAT = "rlkit semantic ids 1"


@dataclass(frozen=True)
class SemanticIds:
    """The semantic ID of every item of a catalog, in the catalog's order.

    Args:
        tokens: N semantic IDs of 1 to 8 tokens; items may share one.
        normalization: how log-probs are normalized in the loss and in decoding: over the tokens that can follow, or
            over the whole vocabulary.
        method: what made them (``given``, ``residual_kmeans`` ...).

    Raises:
        DataError: there is none, or one has no token or more than eight.
    """

    tokens: tuple[tuple[str, ...], ...]
    normalization: Normalization = "children"
    method: str = "given"

    def __post_init__(self) -> None:
        if not self.tokens:
            raise DataError("semantic IDs: there is none, got an empty catalog; give it at least one item")
        if wrong := [item for item, sid in enumerate(self.tokens) if not 1 <= len(sid) <= MAX_LEVELS or "" in sid]:
            raise DataError(
                f"semantic IDs: {len(wrong)} of {len(self.tokens)} are not 1 to {MAX_LEVELS} tokens, item {wrong[0]}"
                f" got {self.tokens[wrong[0]]!r}; mend them, or make new ones with residual_kmeans"
            )

    @property
    def levels(self) -> int:
        """Return L, the length of the longest one."""
        return max(map(len, self.tokens))

    @cached_property
    def distinct(self) -> tuple[tuple[str, ...], ...]:
        """The distinct semantic IDs, in the order in which they first occur."""
        return tuple(dict.fromkeys(self.tokens))

    @cached_property
    def sid_of_item(self) -> np.ndarray:
        """(N,) which of the distinct semantic IDs each item has."""
        place = {sid: index for index, sid in enumerate(self.distinct)}
        return np.asarray([place[sid] for sid in self.tokens])

    @cached_property
    def items_of_sid(self) -> list[tuple[int, ...]]:
        """The items of each distinct semantic ID, in order."""
        items: list[list[int]] = [[] for _ in self.distinct]
        for item, sid in enumerate(self.sid_of_item):
            items[sid].append(item)
        return [tuple(group) for group in items]

    def vocabulary(self) -> tuple[str, ...]:
        """Return the distinct tokens, by the first level at which they occur and then by their code."""
        level: dict[str, int] = {}
        for sid in self.distinct:
            for depth, token in enumerate(sid):
                level[token] = min(depth, level.get(token, depth))
        return tuple(sorted(level, key=lambda token: (level[token], _code(token), token)))

    def with_normalization(self, normalization: Normalization) -> SemanticIds:
        """Return the same semantic IDs, normalized in another way."""
        return replace(self, normalization=normalization)

    def fingerprint(self) -> str:
        """Return a hash of the content."""
        content = json.dumps([self.tokens, self.normalization, self.method], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def save(self, path: Path | str) -> None:
        """Write a JSON file, whole or not at all."""
        content = {
            "format": FILE_FORMAT,
            "method": self.method,
            "normalization": self.normalization,
            "fingerprint": self.fingerprint(),
            "tokens": self.tokens,
        }
        write_atomically(Path(path), json.dumps(content, ensure_ascii=False) + "\n")

    @staticmethod
    def load(path: Path | str) -> SemanticIds:
        """Read a file that ``save`` wrote.

        Raises:
            DataError: it is missing, damaged, or of another format.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file; name a file of semantic IDs") from None
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON: {error}; write the semantic IDs again") from error
        if problems := _problems(content):
            raise DataError(*(f"{path}: {problem}; write the semantic IDs again" for problem in problems))
        try:
            ids = SemanticIds(tuple(map(tuple, content["tokens"])), content["normalization"], content["method"])
        except DataError as error:
            raise DataError(*(f"{path}: {problem}" for problem in error.problems)) from error
        if content["fingerprint"] != ids.fingerprint():
            raise DataError(
                f"{path}: the content was changed after it was written, got fingerprint {content['fingerprint']!r}"
                f" instead of {ids.fingerprint()!r}; write the semantic IDs again"
            )
        return ids


def make_semantic_ids(
    data: RecommendationData, settings: GivenSettings | ResidualKMeansSettings | None, seed: int
) -> SemanticIds:
    """Read or make the semantic IDs of a catalog; without settings the given ones where there are any.

    Raises:
        DataError: given ones are asked for and there are none, or nothing is known to make them from.
    """
    if settings is None:
        settings = ResidualKMeansSettings() if data.semantic_ids is None else GivenSettings()
    if isinstance(settings, GivenSettings):
        return given_ids(data, settings, seed)
    from rlkit.recsys.quantizers.residual_kmeans import residual_kmeans_ids

    return residual_kmeans_ids(data, settings, seed)


def given_ids(data: RecommendationData, settings: GivenSettings, seed: int) -> SemanticIds:
    """Return the semantic IDs that the data brings along.

    Raises:
        DataError: it brings none.
    """
    if data.semantic_ids is None:
        raise DataError(f"{data.name}: the data has no semantic IDs, got type 'given'; use type residual_kmeans")
    return SemanticIds(data.semantic_ids, method=settings.type)


def from_codes(codes: np.ndarray, method: str) -> SemanticIds:
    """Name the codes (N, L) of N items, ``<a_12>`` at the first level; -1 stands for no token."""
    rows = [
        [f"<{LEVEL_LETTERS[level]}_{code}>" for level, code in enumerate(row) if code >= 0] for row in codes.tolist()
    ]
    return SemanticIds(tuple(map(tuple, rows)), method=method)


def _code(token: str) -> int:
    number = re.search(r"\d+", token)
    return int(number.group()) if number else -1


def _problems(content: Any) -> list[str]:
    """Return what keeps parsed JSON from being a table of semantic IDs."""
    if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        return [f"not a file of semantic IDs, got format {found!r}"]
    problems = []
    if content.get("normalization") not in get_args(Normalization):
        problems.append(f"normalization must be children or vocabulary, got {content.get('normalization')!r}")
    problems += [
        f"{key} must be a text, got {content.get(key)!r}"
        for key in ("method", "fingerprint")
        if not isinstance(content.get(key), str)
    ]
    if not _is_table(content.get("tokens")):
        problems.append("tokens must be a list of lists of texts, got something else")
    return problems


def _is_table(tokens: Any) -> bool:
    def texts(row: Any) -> bool:
        return isinstance(row, Sequence) and not isinstance(row, str) and all(isinstance(token, str) for token in row)

    return isinstance(tokens, list) and all(map(texts, tokens))
