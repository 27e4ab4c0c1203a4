"""The formats of chat data: which one a file holds, and what each of its rows says.

A parser turns one object into rows of the kind that its format was made for; ``kinds.as_kind`` turns these into what a
source was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlkit.chat.data.messages import (
    from_json,
    full_text_of,
    is_dialogue,
    list_of,
    messages_from_json,
    parse_dialogue,
    parse_message,
    parse_messages,
    parse_prompt,
    text_of,
    tools_of,
)
from rlkit.chat.data.report import BadRow, short
from rlkit.chat.data.rows import Dialogue, Messages, Pair, Question, Rated, Row, assistant, user
from rlkit.chat.data.stepwise import parse_stepwise
from rlkit.chat.data.tasks import is_gsm8k, parse_gsm8k, parse_humaneval
from rlkit.records import Source

LOOK = 20
"""How many objects of a file are looked at to find its format."""
Object = Mapping[str, Any]


# ---- conversations and prompts


def _messages(row: Object, source: Source) -> list[Row]:
    key = next((key for key in ("messages", "conversations", "conversation") if key in row), "messages")
    messages = parse_messages(list_of(row, key), key)
    if isinstance(row.get("system"), str) and row["system"] and messages[0].role != "system":
        messages = (parse_message({"role": "system", "content": row["system"]}, "system"), *messages)
    return [Dialogue(messages, source, tools_of(row))]


def _alpaca(row: Object, source: Source) -> list[Row]:
    history = from_json(row.get("history") or [])
    if not isinstance(history, list):
        raise BadRow(f"history: not a list of pairs, got {short(history)}; write [[question, answer], ...]")
    past = [message for at, turn in enumerate(history) for message in _turn(turn, f"history[{at}]")]
    messages = (*_system(row), *past, user(_instruction(row)))
    answer = [assistant(text_of(row, "output"))] if "output" in row else []
    return [Dialogue((*messages, *answer), source)]


def _turn(turn: Any, where: str) -> Messages:
    if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
        raise BadRow(f"{where}: not a pair of texts, got {short(turn)}; write [question, answer]")
    return (user(turn[0]), assistant(turn[1]))


def _system(row: Object) -> Messages:
    text = row.get("system") or ""
    return (parse_message({"role": "system", "content": text}, "system"),) if text else ()


def _instruction(row: Object) -> str:
    text, more = full_text_of(row, "instruction"), row.get("input") or ""
    if not isinstance(more, str):
        raise BadRow(f"input: not a text, got {short(more)}; put it in quotes")
    return f"{text}\n\n{more}" if more.strip() else text


def _prompt_completion(row: Object, source: Source) -> list[Row]:
    prompt = parse_prompt(row.get("prompt"), "prompt") if "prompt" in row else (user(full_text_of(row, "prompt")),)
    return [Dialogue((*_system(row), *prompt, *_completion(row)), source, tools_of(row))]


def _completion(row: Object) -> Messages:
    key = "response" if "response" in row and "completion" not in row else "completion"
    return _answer(row, key)


def _answer(row: Object, key: str) -> Messages:
    """Return what follows a prompt: a text that says something, one message or several."""
    value = messages_from_json(row.get(key))
    if isinstance(value, dict):
        return (parse_message(value, key),)
    if isinstance(value, list):
        return parse_messages(list_of({key: value}, key), key)
    return (assistant(full_text_of(row, key)),)


def _self_instruct(row: Object, source: Source) -> list[Row]:
    found = row.get("instances")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise BadRow(f"instances: not a list of objects, got {short(found)}; write [{{input, output}}, ...]")
    shared = {key: value for key, value in row.items() if key == "instruction"}
    return [row for one in found for row in _alpaca({**one, **shared}, source)]


def _prompts(row: Object, source: Source) -> list[Row]:
    if "turns" in row and "prompt" not in row:
        turns = list_of(row, "turns")
        prompt, used = parse_prompt(turns[0], "turns[0]"), ("turns",) if len(turns) == 1 else ()
        return [Question(prompt, "", source, _others(row, used))]
    key = "question" if "question" in row and "prompt" not in row else "prompt"
    if key not in row:
        text_of(row, key)
    wrong: list[str] = []
    prompt = _or_note(lambda: parse_prompt(row[key], key), wrong)
    answer = _or_note(lambda: text_of(row, "answer") if row.get("answer") is not None else "", wrong)
    if wrong:
        raise BadRow(*wrong)
    return [Question((*_system(row), *prompt), answer, source, _others(row, (key, "answer", "system")), tools_of(row))]


def _or_note(read: Callable[[], Any], problems: list[str]) -> Any:
    try:
        return read()
    except BadRow as bad:
        problems += bad.problems
        return ()


def _others(row: Object, used: Sequence[str]) -> Object:
    return {key: value for key, value in row.items() if key not in (*used, "tools")}


def _text(row: Any, source: Source) -> list[Row]:
    return [Question((user(row),), "", source)]


# ---- preferences and feedback


def _preference(row: Object, source: Source) -> list[Row]:
    chosen, rejected = (_side(row, key) for key in ("chosen", "rejected"))
    prompt = _prompt_of(row)
    if chosen[0].role != "assistant":  # whole conversations, whatever the prompt says
        prompt, chosen, rejected = _common_prompt(chosen, rejected)
    elif not prompt:
        raise BadRow(f"prompt: missing, got the keys {short(sorted(row))}; add it, or rename the key")
    return [Pair(prompt, chosen, rejected, source, _margin(row), tools_of(row))]


def _side(row: Object, key: str) -> Messages:
    value = row.get(key)
    return parse_dialogue(value, key) if isinstance(value, str) and is_dialogue(value) else _answer(row, key)


def _prompt_of(row: Object) -> Messages:
    if "conversations" in row or "messages" in row:
        return next(one.messages for one in _messages(row, Source("")) if isinstance(one, Dialogue))
    if "instruction" in row:
        return next(
            one.prompt
            for one in _alpaca({key: row[key] for key in row if key != "output"}, Source(""))
            if isinstance(one, Dialogue)
        )
    key = next((key for key in ("prompt", "question") if key in row), "")
    return (*_system(row), *parse_prompt(row[key], key)) if key else ()


def _common_prompt(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """Part two conversations where they begin to differ, before a message of the assistant."""
    same = next((at for at, (one, other) in enumerate(zip(chosen, rejected)) if one != other), None)
    at = min(len(chosen), len(rejected)) if same is None else same
    while at and (at >= min(len(chosen), len(rejected)) or "assistant" not in (chosen[at].role, rejected[at].role)):
        at -= 1
    if not any(one.role == "user" for one in chosen[:at]):
        raise BadRow("chosen and rejected share no prompt; let both begin with the same message of the user")
    return chosen[:at], chosen[at:], rejected[at:]


def _margin(row: Object) -> float | None:
    value = row.get("margin")
    if value is None or value == "":
        return None
    wrong = BadRow(f"margin: not a finite number, got {short(value)}; write by how much chosen is better")
    try:
        margin = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise wrong from error
    if not math.isfinite(margin):
        raise wrong
    return margin


def _stack_exchange(row: Object, source: Source) -> list[Row]:
    prompt = (user(full_text_of(row, "question")),)
    chosen, rejected = (assistant(full_text_of(row, key)) for key in ("response_j", "response_k"))
    return [Pair(prompt, (chosen,), (rejected,), source)]


def _feedback(row: Object, source: Source) -> list[Row]:
    key = "kto_tag" if "kto_tag" in row else "label"
    if "messages" in row or "conversations" in row or "conversation" in row:
        found = _messages(row, source)[0]
    elif "instruction" in row:
        found = _alpaca(row, source)[0]
    else:
        found = _prompt_completion(row, source)[0]
    assert isinstance(found, Dialogue)
    messages = found.messages
    if messages[-1].role != "assistant" or len(messages) < 2:
        raise BadRow(f"the last message is the {messages[-1].role}'s; end with the answer that the label is about")
    return [Rated(messages[:-1], messages[-1:], _label(row, key), source, found.tools)]


def _label(row: Object, key: str) -> bool:
    if key not in row:
        raise BadRow(f"{key}: missing, got the keys {short(sorted(row))}; add true or false")
    value = row[key].strip().lower() if isinstance(row[key], str) else row[key]
    if value not in (True, False, "true", "false", "1", "0"):
        raise BadRow(f"{key}: not true or false, got {short(row[key])}; write one of them")
    return value in (True, "true", "1")


# ---- which one


class Format(NamedTuple):
    """A format: how a row is read, which kinds of rows it can give, and the keys by which it is known."""

    parse: Callable[[Any, Source], list[Row]]
    gives: tuple[str, ...]
    known_by: tuple[tuple[str, ...], ...]


_TALK = ("demonstrations", "prompts")
FORMATS = {
    "feedback": Format(
        _feedback,
        ("feedback", "prompts"),
        tuple(
            (*text, label)
            for text in (("messages",), ("conversations",), ("completion",), ("response",), ("output",))
            for label in ("label", "kto_tag")
        ),
    ),
    "stepwise": Format(parse_stepwise, ("steps", "prompts"), (("completions", "labels"), ("completions",))),
    "preference": Format(_preference, ("preferences", "prompts"), (("chosen", "rejected"), ("chosen",), ("rejected",))),
    "stack_exchange": Format(
        _stack_exchange, ("preferences", "prompts"), (("response_j", "response_k"), ("response_j",), ("response_k",))
    ),
    "sharegpt": Format(_messages, _TALK, (("conversations",), ("conversation",))),
    "messages": Format(_messages, _TALK, (("messages",),)),
    "self_instruct": Format(_self_instruct, _TALK, (("instruction", "instances"),)),
    "alpaca": Format(_alpaca, _TALK, (("instruction", "output"), ("instruction",))),
    "humaneval": Format(parse_humaneval, ("prompts", "demonstrations"), (("prompt", "entry_point", "test"),)),
    "prompt_completion": Format(_prompt_completion, _TALK, (("prompt", "completion"), ("prompt", "response"))),
    "gsm8k": Format(parse_gsm8k, ("prompts", "demonstrations"), ()),  # known by its answers
    "prompts": Format(_prompts, ("prompts", "demonstrations"), (("prompt",), ("question",), ("turns",))),
    "text": Format(_text, ("prompts",), ()),
}
"""By name, in the order in which they are tried."""


class Detected(NamedTuple):
    """A format and why."""

    format: str
    reason: str


def detect(values: Sequence[Any]) -> Detected | None:
    """Find the format of a file by the keys of its first objects.

    Args:
        values: the first ones of the file.

    Returns:
        None where no format knows the keys.
    """
    objects = [value for value in values[:LOOK] if isinstance(value, dict)]
    if not objects:
        return Detected("text", "plain lines") if values and isinstance(values[0], str) else None
    keys = {key for value in objects for key in value}
    known = ((name, keys_of) for name, one in FORMATS.items() for keys_of in one.known_by)
    found = next((one for one in known if keys.issuperset(one[1])), None)
    if found and found[0] == "prompts" and is_gsm8k(objects):
        return Detected("gsm8k", "keys question, answer, and every answer ends in #### number")
    return _by_first_message(found[0], objects, found[1]) if found else None


def _by_first_message(name: str, objects: Sequence[Object], known_by: tuple[str, ...]) -> Detected:
    """Tell OpenAI's messages from ShareGPT's by the keys of the first message, wherever the list stands."""
    reason = f"keys {', '.join(known_by)}" if len(known_by) > 1 else f"key {known_by[0]}"
    if name in ("messages", "sharegpt"):
        first = from_json(objects[0].get(known_by[0]))
        first = first[0] if isinstance(first, list) and first and isinstance(first[0], dict) else {}
        name = "sharegpt" if "from" in first else "messages" if "role" in first else name
        reason += f" with {', '.join(sorted(map(str, first)))}" if first else ""
    return Detected(name, reason)
