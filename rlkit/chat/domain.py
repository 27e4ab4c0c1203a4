"""The chat domain: files to records, a chat template to texts, exact match to a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlkit.chat.answers import greedy_answers, is_exact
from rlkit.chat.data.read import ChatData, read_chat
from rlkit.chat.data.report import SHOWN_PER_FILE
from rlkit.chat.data.rows import user
from rlkit.chat.render import Renderer
from rlkit.config.algorithms import ValidateSettings
from rlkit.config.chat import ChatSettings
from rlkit.errors import DataError
from rlkit.job import Job
from rlkit.records import Demonstration, Feedback, Preference, Prompt, StepLabels
from rlkit.run_directory import content_hash

VALIDATE_BATCH_SIZE = 32

Row = TypeVar("Row")
Record = TypeVar("Record")


def chat_domain(settings: ChatSettings, job: Job) -> ChatDomain:
    """Build the domain of a run."""
    return ChatDomain(settings, job.seed)


class ChatDomain:
    """Conversations, preferences, feedback and prompts; any text may be a completion.

    Args:
        settings: the recipe's domain.
        seed: of the sample that ``prompts`` takes.
    """

    constraint = None
    normalization = "vocabulary"
    new_tokens: Sequence[str] = ()

    def __init__(self, settings: ChatSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed

    # ---- data and tokenizer

    @cached_property
    def data(self) -> ChatData:
        """Read the files."""
        return read_chat(self.settings)

    def prepare(self, model: Path | None = None) -> None:
        """Do nothing: a chat model brings all that it needs."""

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the tokenizer whose chat template renders the messages; one without a template gets the built-in one.

        Raises:
            ModelError: it has no end token, or the template refuses the system message.
        """
        self.tokenizer = tokenizer
        self.renderer = Renderer(tokenizer, self.settings.system)

    # ---- records

    def render(self, prompt: str) -> str:
        """Return the text that the answer to a user's message follows."""
        return self.renderer.text((user(prompt),))

    def prompts(self, split: str, limit: int | None = None) -> list[Prompt]:
        """Render a split in its order; ``limit`` takes a seeded sample of that size, still in order."""
        rows = self._rows("prompts", split)
        chosen: Sequence[int] = range(len(rows))
        if limit is not None and limit < len(rows):
            chosen = sorted(np.random.default_rng(self.seed).choice(len(rows), limit, replace=False).tolist())
        return _each(lambda index: self.renderer.prompt(rows[index], f"{split}-{index}"), chosen)

    def demonstrations(self, split: str) -> list[Demonstration]:
        """Render the conversations of a split, every turn of the assistant to be learned."""
        return _each(self.renderer.demonstration, self._rows("demonstrations", split))

    def preferences(self, split: str) -> list[Preference]:
        """Render the pairs of a split."""
        return _each(self.renderer.preference, self._rows("preferences", split))

    def feedback(self, split: str) -> list[Feedback]:
        """Render the labeled answers of a split."""
        return _each(self.renderer.feedback, self._rows("feedback", split))

    def step_labels(self, split: str) -> list[StepLabels]:
        """Render the answers of a split whose steps are labeled."""
        return _each(self.renderer.step_labels, self._rows("steps", split))

    def _rows(self, kind: str, split: str) -> Sequence[Any]:
        splits = self.data.rows[kind]
        if not any(splits.values()):
            more = ", and no prompt carries an answer" if kind == "demonstrations" else ""
            raise DataError(f"domain.{kind}: there are none{more}; name a file of them")
        if not splits[split]:
            raise DataError(f"domain.{kind}: the {split} split is empty; name another file as {split}")
        return splits[split]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the rows of each source, by split."""
        return {kind: {split: len(rows) for split, rows in splits.items()} for kind, splits in self.data.rows.items()}

    def train_sequences(self) -> None:
        """Return None: chat has demonstrations, not sequences."""

    # ---- files

    def save(self, folder: Path) -> None:
        """Do nothing: the template is saved with the tokenizer."""

    def fingerprint(self) -> dict[str, str]:
        """Return nothing: a chat model depends on its tokenizer, template included, and that has a hash of its own."""
        return {}

    def inputs(self) -> list[str]:
        """Return hashes of the data files, for "finished before"."""
        return [content_hash(Path(path)) for path in self.data.files]

    # ---- measuring

    def validate(
        self,
        lm: Any,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        settings: ValidateSettings,
        device: Any,
    ) -> dict[str, np.ndarray]:
        """Return for each prompt whether the greedy answer is right."""
        answers = greedy_answers(
            lm,
            tokenizer,
            prompts,
            max_tokens=self.settings.max_completion_tokens,
            batch_size=VALIDATE_BATCH_SIZE,
            device=device,
        )
        right = [is_exact(answer, prompt.answer) for answer, prompt in zip(answers, prompts)]
        return {"exact_match": np.asarray(right, dtype=np.float64)}

    def evaluate(self, job: Job) -> dict[str, Any]:
        """Answer a split with the trained models."""
        from rlkit.chat.evaluate import evaluate

        return evaluate(job, self)


def _each(render: Callable[[Row], Record], rows: Iterable[Row]) -> list[Record]:
    """Render all rows; the problems of the first few that cannot be are raised together."""
    records: list[Record] = []
    problems: list[str] = []
    for row in rows:
        try:
            records.append(render(row))
        except DataError as error:
            problems += error.problems
            if len(problems) >= SHOWN_PER_FILE:
                break
    if problems:
        raise DataError(*problems)
    return records
