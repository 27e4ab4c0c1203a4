"""Messages in the forms that files hold them in: OpenAI's, ShareGPT's, and dialogues written as one text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.chat.data.report import BadRow, short
from rlkit.chat.data.rows import Message, Messages, user

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
"""The role that each name stands for, in OpenAI's and in ShareGPT's files."""
_MARKS = re.compile(r"\n\n(Human|Assistant):")
_MARKED = {"Human": "user", "Assistant": "assistant"}


def text_of(row: Mapping[str, Any], key: str) -> str:
    """Return a text of a row.

    Raises:
        BadRow: it is missing or not a text.
    """
    if key not in row:
        raise BadRow(f"{key}: missing, got the keys {short(sorted(map(str, row)))}; add it, or rename the key")
    if not isinstance(row[key], str):
        raise BadRow(f"{key}: not a text, got {short(row[key])}; put it in quotes")
    return row[key]


def full_text_of(row: Mapping[str, Any], key: str) -> str:
    """Return a text of a row that is not blank.

    Raises:
        BadRow: it is missing, not a text, or blank.
    """
    text = text_of(row, key)
    if not text.strip():
        raise BadRow(f"{key}: empty, got {short(text)}; write it, or delete the row")
    return text


def list_of(row: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list of a row; a CSV cell may hold it as JSON.

    Raises:
        BadRow: it is missing, not a list, or empty.
    """
    value = from_json(row.get(key))
    if not isinstance(value, list) or not value:
        raise BadRow(f"{key}: not a list of messages, got {short(value)}; write [{{role, content}}, ...]")
    return value


def from_json(value: Any) -> Any:
    """Return the list or the object that a text holds as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def messages_from_json(value: Any) -> Any:
    """Return the message or the messages that a text holds as JSON, as a CSV cell may; anything else as it is.

    A text that is JSON of another kind is a text: code, a table, or the answer that JSON was asked for.
    """
    found = from_json(value)
    entries = found if isinstance(found, list) else [found]
    if entries and all(isinstance(one, dict) and ("role" in one or "from" in one) for one in entries):
        return found
    return value


def parse_messages(entries: Sequence[Any], key: str) -> Messages:
    """Read messages of ``role, content`` or ``from, value``.

    Args:
        entries: the list.
        key: where it stands, for errors.

    Raises:
        BadRow: an entry is no message.
    """
    return tuple(parse_message(entry, f"{key}[{at}]") for at, entry in enumerate(entries))


def parse_message(entry: Any, where: str) -> Message:
    """Read one message.

    Raises:
        BadRow: it is none.
    """
    if not isinstance(entry, dict):
        raise BadRow(f"{where}: not a message, got {short(entry)}; write {{role, content}} or {{from, value}}")
    name = str(entry.get("role", entry.get("from", "")))
    if name not in ROLES:
        raise BadRow(f"{where}: unknown role, got {name!r}; write one of: {', '.join(ROLES)}")
    calls = _calls(entry.get("tool_calls"), where)
    content = _content(entry.get("content", entry.get("value")), where, optional=bool(calls))
    if name == "function_call" and (found := _called(content)):
        content, calls = "", found
    return Message(ROLES[name], content, calls, entry.get("weight", 1) != 0)


def _content(value: Any, where: str, *, optional: bool) -> str:
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise BadRow(f"{where}: content holds more than text, got {short(value)}; leave images and sound out")
        return "".join(texts)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{where}: content is not a text, got {short(value)}; put it in quotes")
    return value


def _calls(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    if not value:
        return ()
    calls = value if isinstance(value, list) else [value]
    functions = [call.get("function", call) for call in calls if isinstance(call, dict)]
    if len(functions) < len(calls) or not all(isinstance(one, dict) and "name" in one for one in functions):
        raise BadRow(f"{where}: tool_calls without a name, got {short(value)}; write {{function: {{name, arguments}}}}")
    return tuple(_call(one) for one in functions)


def _called(text: str) -> tuple[Mapping[str, Any], ...]:
    """Return the calls that ShareGPT's ``function_call`` holds as JSON; a text that is none stays a text."""
    found = from_json(text)
    found = found if isinstance(found, list) else [found]
    return tuple(map(_call, found)) if all(isinstance(one, dict) and "name" in one for one in found) else ()


def _call(function: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = from_json(function.get("arguments", {}))
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def tools_of(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the tools that a row offers, in OpenAI's form.

    Raises:
        BadRow: they are not a list of objects.
    """
    found = from_json(row.get("tools") or [])
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise BadRow(f"tools: not a list of functions, got {short(found)}; write [{{name, parameters}}, ...]")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in found)


def is_dialogue(text: str) -> bool:
    r"""Return whether a text begins like hh-rlhf's: ``\n\nHuman: ...``."""
    return text.startswith("\n\nHuman:")


def parse_dialogue(text: str, key: str) -> Messages:
    r"""Read ``\n\nHuman: ...\n\nAssistant: ...``; turns of one side that follow each other are one message.

    Raises:
        BadRow: the text does not begin with a mark.
    """
    if not is_dialogue(text):
        raise BadRow(f"{key}: no dialogue, got {short(text)}; add the prompt, or begin with '\\n\\nHuman:'")
    pieces = _MARKS.split(text)[1:]
    messages: list[Message] = []
    for mark, content in zip(pieces[::2], pieces[1::2]):
        role, content = _MARKED[mark], content.strip()
        if messages and messages[-1].role == role:
            content = f"{messages.pop().content}\n\n{content}"
        messages.append(Message(role, content))
    return tuple(messages)


def parse_prompt(value: Any, key: str) -> Messages:
    """Read a prompt: a text, a dialogue that waits for its answer, one message or several.

    Raises:
        BadRow: it is none of them, or empty.
    """
    value = messages_from_json(value)
    if isinstance(value, dict):
        messages: Messages = (parse_message(value, key),)
    elif isinstance(value, list):
        messages = parse_messages(list_of({key: value}, key), key)
    else:
        text = full_text_of({key: value}, key)
        messages = parse_dialogue(text, key) if is_dialogue(text) else (user(text),)
        if messages[-1] == Message("assistant", ""):  # the mark after which the answer is to be written
            messages = messages[:-1]
    if not any(one.role == "user" and one.content.strip() for one in messages):
        raise BadRow(f"{key}: holds no message of the user, got {short(value)}; add one, or delete the row")
    return messages
