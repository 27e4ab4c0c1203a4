"""Where domains and algorithms meet: what was read from files, with the place it was read from.

The ground truth travels inside the record; nothing is ever looked up by text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Source:
    """A place in a file; ``line`` counts from 1 (0: the file as a whole)."""

    path: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a policy is given, and the answer that its completion is measured against.

    Args:
        key: unique within its split; keys the sampling noise, so that every number of processes
            sees the same rollouts.
        text: the rendered prompt, tokenized without adding special tokens.
        answer: the completion that counts as right; empty where there is none.
        task: the name of the task that rendered the prompt.
        context: the domain's own view of the record (for recommendation an ``Interaction``).
    """

    key: str
    text: str
    answer: str
    source: Source
    task: str = ""
    context: Any = None


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with the completion to imitate; the loss counts the completion only.

    Args:
        prompt: the rendered text before the completion.
        completion: without the end token, which training appends.
        task: the name of the task that rendered it.
        earlier: turns of the conversation before ``prompt``: rendered context and the completion after it, both with
            every marker of the template. Their completions are trained on as well.
    """

    prompt: str
    completion: str
    source: Source
    task: str = ""
    earlier: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with a better and a worse completion; ``margin``: by how much, where that is known."""

    prompt: str
    chosen: str
    rejected: str
    source: Source
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Feedback:
    """A prompt, one completion, and whether a person liked it."""

    prompt: str
    completion: str
    desirable: bool
    source: Source


@dataclass(frozen=True, slots=True)
class StepLabels:
    """A prompt, the steps of one completion without what parts them, and how probably each step is right (0 to 1)."""

    prompt: str
    steps: tuple[str, ...]
    labels: tuple[float, ...]
    source: Source
