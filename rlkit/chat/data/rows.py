"""What chat data is made of before a chat template renders it: messages, and the five kinds of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlkit.records import Source

KINDS = ("demonstrations", "preferences", "feedback", "steps", "prompts")
"""The sources of a chat domain, by the name of their setting."""
RECORDS = {
    "demonstrations": "Demonstration",
    "preferences": "Preference",
    "feedback": "Feedback",
    "steps": "StepLabels",
    "prompts": "Prompt",
}
"""The record that each kind is rendered to."""
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Args:
        role: system, user, assistant or tool.
        content: its text.
        calls: tool calls of an assistant, in OpenAI's form.
        trained: whether an assistant's message is learned from.
    """

    role: str
    content: str
    calls: tuple[Mapping[str, Any], ...] = ()
    trained: bool = True

    @property
    def text(self) -> str:
        """Return the content, and the calls as lines of JSON below it."""
        calls = (json.dumps(call["function"], ensure_ascii=False) for call in self.calls)
        return "\n".join((*([self.content] if self.content else []), *calls))


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation to imitate; ``tools``: what the assistant may call, in OpenAI's form."""

    messages: Messages
    source: Source
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def prompt(self) -> Messages:
        """Return the messages before the first one of the assistant."""
        first = next((at for at, one in enumerate(self.messages) if one.role == "assistant"), len(self.messages))
        return self.messages[:first]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt, history included, with a better and a worse continuation; ``margin``: by how much, if known."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    source: Source
    margin: float | None = None
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Rated:
    """A prompt, history included, one continuation, and whether it was liked."""

    prompt: Messages
    completion: Messages
    desirable: bool
    source: Source
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Stepwise:
    """A prompt, history included, the steps of one answer, and how probably each is right (0 to 1)."""

    prompt: Messages
    steps: tuple[str, ...]
    labels: tuple[float, ...]
    source: Source
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, the answer that counts as right (empty: none), and what else its row said.

    ``solution``: the way to the answer, which a demonstration shows; empty where the answer is all there is.
    """

    prompt: Messages
    answer: str
    source: Source
    context: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    solution: str = ""


Row = Dialogue | Pair | Rated | Stepwise | Question


def user(text: str) -> Message:
    """Return a user's message."""
    return Message("user", text)


def assistant(text: str) -> Message:
    """Return an assistant's message."""
    return Message("assistant", text)


def prompt_key(row: Row) -> str:
    """Return what must not stand in two splits: the first message of the user, white space aside.

    The first message and not the whole history, because the rows of one conversation often hold ever longer parts
    of it.
    """
    first = next((one.content for one in row.prompt if one.role == "user"), "")
    return " ".join(first.split())
