"""From what a row says to what a source was asked for: a conversation is also a prompt, an answered prompt also one."""

from __future__ import annotations

from collections.abc import Iterable

from rlkit.chat.data.report import BadRow, short
from rlkit.chat.data.rows import Dialogue, Message, Messages, Pair, Question, Rated, Row, Stepwise, assistant


def as_kind(row: Row, kind: str) -> Row:
    """Return a row as a demonstration, a preference, feedback, steps or a prompt, checked for what that needs.

    Raises:
        BadRow: it lacks what the kind needs.
    """
    if kind == "demonstrations":
        return _demonstration(row)
    if kind == "prompts":
        return _question(row)
    if isinstance(row, Pair):
        if _said(row.chosen) == _said(row.rejected):
            raise BadRow(
                f"chosen and rejected are the same, got {short(row.chosen[-1].content)}; mend one, or delete the row"
            )
        _check_prompt(row.prompt)
        _check_side("chosen", row.chosen)
        _check_side("rejected", row.rejected)
    if isinstance(row, Stepwise):
        _check_prompt(row.prompt)
    if isinstance(row, Rated):
        _check_prompt(row.prompt)
        _check_answers(row.completion)
    return row


def _demonstration(row: Row) -> Dialogue:
    if isinstance(row, Question):
        if not row.answer.strip():
            raise BadRow("answer: missing or empty, and a demonstration is its answer; write it, or delete the row")
        return Dialogue((*row.prompt, assistant(row.solution or row.answer)), row.source, row.tools)
    assert isinstance(row, Dialogue)
    last = max((at for at, one in enumerate(row.messages) if _learned(one)), default=-1)
    if last < 0:
        raise BadRow("holds no message of the assistant, so there is nothing to learn from; add one, or delete the row")
    messages = row.messages[: last + 1]
    _check_prompt(row.prompt)
    _check_prompt(messages)
    _check_answers(messages)
    return Dialogue(messages, row.source, row.tools)


def _learned(message: Message) -> bool:
    return message.role == "assistant" and message.trained


def _question(row: Row) -> Question:
    if isinstance(row, Question):
        _check_prompt(row.prompt)
        return row
    if isinstance(row, Pair | Rated | Stepwise):
        _check_prompt(row.prompt)
        return Question(row.prompt, "", row.source, {}, row.tools)
    answered = row.messages[-1].role == "assistant"
    prompt = row.messages[:-1] if answered else row.messages
    _check_prompt(prompt)
    return Question(prompt, row.messages[-1].text if answered else "", row.source, {}, row.tools)


def _check_prompt(messages: Messages) -> None:
    asked = [one.content for one in messages if one.role == "user"]
    if not asked:
        raise BadRow("the assistant speaks before the user; begin with a message of the user, or delete the row")
    if not all(text.strip() for text in asked):
        raise BadRow("prompt: empty, got a message of the user without text; write it, or delete the row")


def _check_answers(messages: Messages) -> None:
    if any(_learned(one) and not one.text.strip() for one in messages):
        raise BadRow("completion: empty, got a message of the assistant without text; write it, or delete the row")


def _check_side(name: str, messages: Messages) -> None:
    """Refuse a side of a pair without an answer; one that is there and says nothing is what somebody compared."""
    if messages[-1].role != "assistant":
        raise BadRow(f"{name}: the last message is the {messages[-1].role}'s; end with the answer that is compared")


def _said(messages: Messages) -> list[tuple[str, str]]:
    return [(one.role, one.text.strip()) for one in messages]


def prompts_from(rows: Iterable[Row]) -> tuple[Question, ...]:
    """Return the prompts of rows; of preferences and feedback each prompt once."""
    found = [_question(row) for row in rows]
    first = {repr(one.prompt): one for one in reversed(found)}
    return tuple(one for one in found if one.answer or first[repr(one.prompt)] is one)


def demonstrations_from(rows: Iterable[Row]) -> tuple[Dialogue, ...]:
    """Return the prompts that carry an answer as conversations."""
    return tuple(_demonstration(row) for row in rows if isinstance(row, Question) and row.answer.strip())
