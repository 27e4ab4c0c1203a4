"""Messages to texts by a tokenizer's chat template: prompts, and what the assistant says after them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlkit.chat.data.rows import Dialogue, Message, Messages, Pair, Question, Rated, Stepwise
from rlkit.errors import DataError, ModelError
from rlkit.models.tokenizer import CHAT_TEMPLATE
from rlkit.records import Demonstration, Feedback, Preference, Prompt, Source, StepLabels

logger = logging.getLogger(__name__)

Tools = Sequence[Mapping[str, Any]]


class Renderer:
    """Renders the rows of a chat domain; the template writes all special tokens.

    A tokenizer without a template gets the built-in one. Tools and tool calls are given to templates that know them;
    for others they are written as JSON.

    Args:
        tokenizer: it must have an end-of-sequence token.
        system: a system message before every conversation that has none.

    Raises:
        ModelError: there is no end token, or the template refuses a system message.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str | None) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "model: its tokenizer has no end-of-sequence token; take a chat model, or add it to the tokenizer"
            )
        if tokenizer.chat_template is None:
            tokenizer.chat_template = CHAT_TEMPLATE
        if tokenizer.chat_template == CHAT_TEMPLATE:
            _say_built_in(str(tokenizer.eos_token))
        self.tokenizer, self.system, self.end = tokenizer, system, str(tokenizer.eos_token)
        self.template = str(tokenizer.chat_template)
        try:
            self.text((Message("user", "?"),))
        except TemplateError as error:
            raise ModelError(
                f"domain.system: the chat template refuses the messages: {error}; leave the system message out"
            ) from error

    # ---- records

    def prompt(self, row: Question, key: str) -> Prompt:
        """Render a prompt up to where its answer begins."""
        text = self._text(row.prompt, row.tools, row.source)
        return Prompt(key, text, row.answer, row.source, task="chat", context=dict(row.context))

    def demonstration(self, row: Dialogue) -> Demonstration:
        """Render a conversation: its last turn, and before it every earlier turn of the assistant."""
        *earlier, last = self._turns(row)
        return Demonstration(*last, row.source, task="chat", earlier=tuple(earlier))

    def preference(self, row: Pair) -> Preference:
        """Render a prompt and what follows it on both sides."""
        prompt = self._text(row.prompt, row.tools, row.source)
        chosen = self._after(prompt, row.prompt, row.chosen, row.tools, row.source)
        rejected = self._after(prompt, row.prompt, row.rejected, row.tools, row.source)
        return Preference(prompt, chosen, rejected, row.source, row.margin)

    def feedback(self, row: Rated) -> Feedback:
        """Render a prompt and its completion."""
        prompt = self._text(row.prompt, row.tools, row.source)
        completion = self._after(prompt, row.prompt, row.completion, row.tools, row.source)
        return Feedback(prompt, completion, row.desirable, row.source)

    def step_labels(self, row: Stepwise) -> StepLabels:
        """Render a prompt; its steps stay as they are, since what parts them is not the template's to say."""
        return StepLabels(self._text(row.prompt, row.tools, row.source), row.steps, row.labels, row.source)

    # ---- texts

    def text(self, messages: Messages, tools: Tools = (), *, answered: bool = False) -> str:
        """Return messages as one text, up to where the assistant speaks unless it has ``answered``."""
        knows_tools, knows_calls = "tools" in self.template, "tool_calls" in self.template
        entries = [_entry(one, knows_calls) for one in self._opened(messages, () if knows_tools else tools)]
        return str(
            self.tokenizer.apply_chat_template(
                entries,
                tools=list(tools) if tools and knows_tools else None,
                tokenize=False,
                add_generation_prompt=not answered,
            )
        )

    def _opened(self, messages: Messages, tools: Tools) -> Messages:
        """Put the system message first, and the tools that the template does not know of into it."""
        system = self.system
        if messages and messages[0].role == "system":
            system, messages = messages[0].content, messages[1:]
        listed = "\n".join(Message("", "", (tool,)).text for tool in tools)
        parts = [part for part in (system, listed and f"Tools:\n{listed}") if part is not None and part != ""]
        if system is None and not parts:
            return messages
        return (Message("system", "\n\n".join(parts)), *messages)

    def _text(self, messages: Messages, tools: Tools, source: Source, *, answered: bool = False) -> str:
        try:
            return self.text(messages, tools, answered=answered)
        except TemplateError as error:
            raise DataError(
                f"{source}: the chat template refuses this conversation: {error}; mend the row, or take another model"
            ) from error

    def _turns(self, row: Dialogue) -> list[tuple[str, str]]:
        """Return what stands before each turn of the assistant, and the turn; together they are the whole text.

        Earlier turns keep their end token, the last one comes without. Markers after an end token belong to what
        follows: they are not the assistant's.
        """
        turns: list[tuple[str, str]] = []
        done = ""
        for at, message in enumerate(row.messages):
            if message.role != "assistant" or not message.trained:
                continue
            before = self._text(row.messages[:at], row.tools, row.source)
            after = self._text(row.messages[: at + 1], row.tools, row.source, answered=True)
            if not before.startswith(done) or not after.startswith(before):
                raise DataError(self._rewritten(row.source))
            said = after[len(before) :]
            end = said.rfind(self.end)
            said = said[: end + len(self.end)] if end >= 0 else said
            turns.append((before[len(done) :], said))
            done = before + said
        context, said = turns[-1]
        turns[-1] = (context, self._without_end(said, row.messages[-1]))
        return turns

    def _after(self, prompt: str, messages: Messages, answer: Messages, tools: Tools, source: Source) -> str:
        """Return what an answer adds to its prompt, without the end token."""
        after = self._text((*messages, *answer), tools, source, answered=True)
        if not after.startswith(prompt):
            raise DataError(self._rewritten(source))
        return self._without_end(after[len(prompt) :], answer[-1])

    def _without_end(self, said: str, message: Message) -> str:
        end = said.rfind(self.end)
        if end >= 0:
            return said[:end]
        content = message.content.strip()
        start = said.find(content)
        return said[: start + len(content)] if start >= 0 else said

    @staticmethod
    def _rewritten(source: Source) -> str:
        wrong = (
            "the chat template writes a prompt differently once its answer follows, so its turns cannot be told apart"
        )
        return f"{source}: {wrong}; take another model or template, or one turn per row"


def _entry(message: Message, knows_calls: bool) -> dict[str, Any]:
    if message.calls and knows_calls:
        return {"role": message.role, "content": message.content, "tool_calls": list(message.calls)}
    return {"role": message.role, "content": message.text}


@cache
def _say_built_in(end: str) -> None:
    logger.info("chat: the tokenizer brings no chat template; the built-in one is taken, with %s after answers", end)
