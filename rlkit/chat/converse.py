"""A conversation with a model: turns in, text out while it is being written."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import DynamicCache, PreTrainedTokenizerBase

from rlkit.errors import DataError, ModelError, TrainingError
from rlkit.models.load import LoadedModel
from rlkit.policy.sampler import prompt_limit
from rlkit.policy.text_sampler import Truncation, kept_logits

UNFINISHED = "\ufffd"
"""What the first bytes of a character decode to."""


@dataclass
class Conversation:
    """What was said so far, and who answers.

    Args:
        loaded: the model, on its device and in evaluation mode.
        truncation: how tokens are chosen.
        max_tokens: where an answer is cut off.
        generator: of the noise.
        system: a system message before everything; None: none.
        notice: told what a reader should know, such as turns that were forgotten.
        messages: the turns so far.
    """

    loaded: LoadedModel
    truncation: Truncation
    max_tokens: int
    generator: torch.Generator
    system: str | None = None
    notice: Callable[[str], None] = lambda text: None
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._encode([{"role": "user", "content": "?"}])  # a template that refuses the system message says so at once

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.messages.clear()

    def answer(self, text: str) -> Generator[str, None, None]:
        """Yield the answer to a user's turn, piece by piece; what was said until it is stopped belongs to the turns.

        Args:
            text: what the user says.

        Raises:
            DataError: the turn alone is longer than the model's context; it is forgotten.
        """
        self.messages.append({"role": "user", "content": text})
        ids, room = self._fit()
        said: list[str] = []
        tokens = stream_tokens(
            self.loaded.model,
            ids,
            truncation=self.truncation,
            max_tokens=room,
            end_ids=end_tokens(self.loaded),
            generator=self.generator,
        )
        try:
            for piece in text_pieces(self.loaded.tokenizer, tokens):
                said.append(piece)
                yield piece
        finally:
            self.messages.append({"role": "assistant", "content": "".join(said)})

    def _fit(self) -> tuple[list[int], int]:
        """Return the prompt's tokens and how many may follow, after forgetting the oldest turns that have no room."""
        limit = prompt_limit(self.loaded.model, 0)
        ids, forgotten = self._encode(self.messages), 0
        if limit is None:
            return ids, self.max_tokens
        wanted = min(self.max_tokens, limit // 2)
        while len(ids) + wanted > limit and len(self.messages) > 1:
            del self.messages[:2]
            ids, forgotten = self._encode(self.messages), forgotten + 1
        if forgotten:
            turns = "turn is" if forgotten == 1 else f"{forgotten} turns are"
            self.notice(f"the oldest {turns} forgotten: the context has room for {limit:,} tokens")
        if len(ids) >= limit:
            self.messages.pop()
            raise DataError(f"message: {len(ids):,} tokens, but the model has room for {limit:,}; write a shorter one")
        return ids, min(self.max_tokens, limit - len(ids))

    def _encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        tokenizer = self.loaded.tokenizer
        try:
            text = tokenizer.apply_chat_template([*system, *messages], tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ModelError(f"--system: the chat template refuses the messages: {error}; leave it out") from error
        return list(tokenizer(text, add_special_tokens=False).input_ids)


def end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """Return the tokens that end an answer: the tokenizer's, and those of the model's generation settings."""
    listed: Any = loaded.model.generation_config.eos_token_id
    more = listed if isinstance(listed, list) else [listed]
    return frozenset(token for token in (loaded.tokenizer.eos_token_id, *more) if token is not None)


def stream_tokens(
    lm: Any,
    ids: Sequence[int],
    *,
    truncation: Truncation,
    max_tokens: int,
    end_ids: frozenset[int],
    generator: torch.Generator,
) -> Iterator[int]:
    """Yield tokens one by one, up to an end token, which is left out, or to ``max_tokens``.

    Args:
        lm: a causal language model in evaluation mode.
        ids: the prompt.
        truncation: how tokens are chosen.
        max_tokens: where to stop.
        end_ids: tokens that end the text.
        generator: of the noise, on the CPU.

    Raises:
        TrainingError: the model's logits are not finite.
    """
    cache, tokens = DynamicCache(), torch.tensor([list(ids)], device=lm.device)
    for _ in range(max_tokens):
        with torch.no_grad():  # never across a yield: it would hold in the caller, too
            logits = lm(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        if not torch.isfinite(logits.amax(-1)).all():
            raise TrainingError("model: its logits are not finite; look at the last good checkpoint")
        values, kept = kept_logits(logits, truncation)  # (1, W)
        place = torch.multinomial(values.softmax(-1).cpu(), 1, generator=generator)
        token = int(kept.cpu().gather(1, place))
        if token in end_ids:
            return
        yield token
        tokens = torch.tensor([[token]], device=lm.device)


def text_pieces(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text of tokens as soon as it is certain: a character that is not complete waits for its other bytes."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = _decode(tokenizer, ids)
        if text.startswith(shown) and len(text) > len(shown) and not text.endswith(UNFINISHED):
            yield text[len(shown) :]
            shown = text
    if len(rest := _decode(tokenizer, ids)) > len(shown):
        yield rest[len(shown) :]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)
