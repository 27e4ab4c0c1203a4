"""The chat domain, the smallest there is: files to records, a chat template to prompts, exact match to a metric."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlkit.chat.answers import greedy_answers, is_exact
from rlkit.chat.data import ChatData, ChatRow, read_chat
from rlkit.config.algorithms import ValidateSettings
from rlkit.config.domains import ChatSettings
from rlkit.errors import ModelError
from rlkit.job import Job
from rlkit.records import Demonstration, Prompt
from rlkit.run_directory import content_hash

VALIDATE_BATCH_SIZE = 32


def chat_domain(settings: ChatSettings, job: Job) -> ChatDomain:
    """Build the domain of a run."""
    return ChatDomain(settings, job.seed)


class ChatDomain:
    """Rows of a prompt and its answer; any text may be a completion.

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
        """Take the tokenizer whose chat template renders the prompts.

        Raises:
            ModelError: it has no template or no end token, or the template refuses the messages.
        """
        if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
            missing = "chat template" if tokenizer.chat_template is None else "end-of-sequence token"
            raise ModelError(f"model: its tokenizer has no {missing}; take a chat model, or add it to the tokenizer")
        self.tokenizer = tokenizer
        try:
            self.render("?")
        except TemplateError as error:
            raise ModelError(
                f"domain.system: the chat template refuses the messages: {error}; leave the system message out"
            ) from error

    # ---- records

    def render(self, prompt: str) -> str:
        """Return the text that the answer follows; the template writes all special tokens."""
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system is not None else []
        messages = [*system, {"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def prompts(self, split: str, limit: int | None = None) -> list[Prompt]:
        """Render a split in its order; ``limit`` takes a seeded sample of that size, still in order."""
        rows = self.data.splits[split]
        chosen: Sequence[int] = range(len(rows))
        if limit is not None and limit < len(rows):
            chosen = sorted(np.random.default_rng(self.seed).choice(len(rows), limit, replace=False).tolist())
        return [self._prompt(rows[index], f"{split}-{index}") for index in chosen]

    def _prompt(self, row: ChatRow, key: str) -> Prompt:
        return Prompt(key=key, text=self.render(row.prompt), answer=row.answer, source=row.source, task="chat")

    def demonstrations(self, split: str) -> list[Demonstration]:
        """Render a split with its answers."""
        return [Demonstration(prompt.text, prompt.answer, prompt.source, prompt.task) for prompt in self.prompts(split)]

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
        return [content_hash(Path(path).expanduser()) for path in self.data.files]

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
