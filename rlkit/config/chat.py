"""Settings of the chat domain and of its data."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from rlkit.component import Settings, Slot

_KINDS = ("demonstrations", "preferences", "feedback", "steps", "prompts")
_DEMO = ("demonstrations", "preferences", "feedback", "prompts")


class ChatFilesSettings(Settings):
    """Rows from a file or a folder: JSONL, JSON, CSV, Parquet (also gzipped), plain lines, or a saved HF dataset."""

    type: Literal["chat_files"] = "chat_files"
    domains: ClassVar[tuple[str, ...]] = ("chat",)

    path: str = Field(min_length=1)
    """The file, or a folder whose files are named after their splits; ``~`` is the home folder."""
    format: Literal[
        "auto",
        "messages",
        "sharegpt",
        "alpaca",
        "prompt_completion",
        "preference",
        "stack_exchange",
        "feedback",
        "stepwise",
        "prompts",
        "gsm8k",
        "humaneval",
        "self_instruct",
        "text",
    ] = "auto"
    """How rows are read; auto: by the keys of the first rows of each file, which the log names."""
    valid: str | None = Field(None, min_length=1)
    """Another file or folder; none: the folder's own valid split, else a share of the prompts of ``path``."""
    valid_share: float = Field(0.1, gt=0, lt=1)
    """The share of rows that is valid where no file is; a prompt is in one split only."""
    test: str | None = Field(None, min_length=1)
    """Another file or folder; none: the folder's own test split, else the valid rows."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What a row that cannot be used leads to; skip counts and lists such rows in the log."""
    max_rows: int | None = Field(None, ge=1)
    """Read so many rows of each file, the first ones; none: all."""


class ChatDemoSettings(Settings):
    """A generated shop assistant for small models: questions about an item, answered politely, curtly or not at all."""

    type: Literal["chat_demo"] = "chat_demo"
    domains: ClassVar[tuple[str, ...]] = ("chat",)

    conversations: int = Field(4_000, ge=20, le=1_000_000)
    """Demonstrations of the train split; valid and test have a tenth as many each, at least 20."""
    pairs: int = Field(2_000, ge=20, le=1_000_000)
    """Preferences, and as many rows of feedback."""
    prompts: int = Field(2_000, ge=20, le=1_000_000)
    """Prompts."""
    polite: float = Field(0.3, gt=0, lt=1)
    """The share of demonstrations that are helpful and polite; the others are curt or unhelpful, half and half."""
    noise: float = Field(0.02, ge=0, lt=0.5)
    """The share of preferences and of feedback that is the wrong way round."""
    seed: int = Field(0, ge=0)
    """The same seed gives the same rows on every machine."""


class ChatSettings(Settings):
    """Chat: conversations, preferences, feedback, steps and prompts, rendered by the tokenizer's chat template.

    A source that is left out is derived where that makes sense: prompts from demonstrations, else from preferences,
    feedback or steps; demonstrations from prompts that carry answers. With no source all but the steps are the
    generated demo.
    """

    type: Literal["chat"] = "chat"
    produces: ClassVar[tuple[str, ...]] = ("Prompt", "Demonstration", "Preference", "Feedback", "StepLabels")
    # What a look at the valid split measures, beside the reward: ``validate_on.select_by`` names one.
    valid_metrics: ClassVar[tuple[str, ...]] = ("exact_match",)
    best_by: ClassVar[str] = "reward"
    constrained: ClassVar[bool] = False

    demonstrations: Annotated[Settings, Slot("data_format", "chat_files")] | None = None
    """Conversations to imitate: messages, ShareGPT, Alpaca, prompt and completion; a text is a ``path``."""
    preferences: Annotated[Settings, Slot("data_format", "chat_files")] | None = None
    """Pairs of a better and a worse answer: prompt, chosen, rejected; a text is a ``path``."""
    feedback: Annotated[Settings, Slot("data_format", "chat_files")] | None = None
    """Answers with a label, liked or not; a text is a ``path``."""
    steps: Annotated[Settings, Slot("data_format", "chat_files")] | None = None
    """Answers in steps, each right or wrong: prompt, completions, labels; a text is a ``path``."""
    prompts: Annotated[Settings, Slot("data_format", "chat_files")] | None = None
    """Prompts, with the answer that counts as right where there is one; a text is a ``path``."""
    system: str | None = None
    """A system message before every conversation that has none."""
    max_completion_tokens: int = Field(256, ge=1)
    """Where greedy answers, on valid and test, are cut off; an answer that was cut off counts as wrong."""

    @model_validator(mode="before")
    @classmethod
    def _texts_are_paths(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if all(values.get(kind) is None for kind in _KINDS):
            return {**values, **{kind: ChatDemoSettings() for kind in _DEMO}}
        named = {kind: values[kind] for kind in _KINDS if isinstance(values.get(kind), str)}
        return {**values, **{kind: ChatFilesSettings(path=path) for kind, path in named.items() if path}}

    def sources(self) -> dict[str, Settings]:
        """Return the settings of the sources that are given, by kind."""
        return {kind: source for kind in _KINDS if (source := getattr(self, kind)) is not None}

    def records(self) -> tuple[str, ...]:
        """Return the records that the given sources can lead to; only its file tells whether a prompt has an answer."""
        given = self.sources()
        there = {
            "Prompt": True,
            "Demonstration": "demonstrations" in given or "prompts" in given,
            "Preference": "preferences" in given,
            "Feedback": "feedback" in given,
            "StepLabels": "steps" in given,
        }
        return tuple(record for record, yes in there.items() if yes)

    def check(self) -> None:
        """Read the files whole, as a run does.

        Raises:
            DataError: every problem found, by file and line.
        """
        from rlkit.chat.data.read import read_chat

        read_chat(self)
