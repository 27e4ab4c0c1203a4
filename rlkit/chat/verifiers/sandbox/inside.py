"""What a child does: hold the model's code and answer calls, hold the tests and make them, or be a whole program."""

from __future__ import annotations

import atexit
import builtins
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from rlkit.chat.verifiers.sandbox import driver, frames, plain

REASON, MESSAGE = 200, 10_000
"""Characters kept of what the code says about its own failure: when it is loaded, and to the tests."""


def answer(channel: int) -> int:
    """Run the model's code, then answer calls to its functions until there are no more."""
    job = frames.read(channel)
    if job is None:
        return 0
    names = driver.new_module("solution")
    try:
        exec(compile(job["code"], "<solution>", "exec", dont_inherit=True), names)
    except BaseException as error:  # the code may raise anything; what it raised is all that matters
        frames.write(channel, {"error": _described(error)})
        return 0
    functions = [name for name, value in list(names.items()) if callable(value) and isinstance(name, str)]
    frames.write(channel, {"names": functions[: driver.MAX_NAMES]})
    while (call := frames.read(channel)) is not None:
        _reply(channel, call, names)
    return 0


def _reply(channel: int, call: dict[str, Any], names: dict[str, Any]) -> None:
    try:
        frames.write(channel, {"id": call["id"], **_result(call, names)})
    except (frames.TooLong, MemoryError) as error:
        frames.write(channel, {"id": call["id"], "unsupported": str(error) or "a value larger than its memory"})


def _result(call: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """Call a function; return its value, or the exception that it raised, as plain data."""
    arguments = plain.decode(call["args"])
    options = {name: plain.decode(tree) for name, tree in call["kwargs"].items()}
    try:
        value = names[call["name"]](*arguments, **options)
    except BaseException as error:  # as above
        return {"error": _builtin_name(type(error)), "args": _arguments(error)}
    try:
        changed = {} if value is not None else {"changed": plain.encode([*arguments, *options.values()])}
        return {"value": plain.encode(value), **changed}
    except (plain.NotPlain, RecursionError) as error:
        return {"unsupported": str(error)}


def _builtin_name(kind: type[BaseException]) -> str:
    """Return the nearest class that Python itself knows; the tests do not have the model's own."""
    return next((base.__name__ for base in kind.__mro__ if getattr(builtins, base.__name__, None) is base), "Exception")


def _arguments(error: BaseException) -> list[plain.Tree]:
    """Return what the tests make the same exception of: its arguments; its text where it says these in its own way."""
    try:
        if type(error).__str__ is getattr(builtins, _builtin_name(type(error))).__str__:
            tree = [plain.encode(part) for part in error.args]
            frames.pack({"args": tree})
            return tree
    except BaseException:  # they cannot cross, or the model's own class lies about them
        pass
    return [_text(error)[:MESSAGE]]


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {_text(error)}"[:REASON]


def _text(error: BaseException) -> str:
    try:
        return str.__str__(str(error))
    except BaseException:  # the model's own __str__
        return ""


def program(channel: int) -> int:
    """Run the model's code as a program; the channel becomes its standard output."""
    job = frames.read(channel)
    if job is None:
        return 1
    stdin = os.open("stdin", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink("stdin")
    with os.fdopen(os.dup(stdin), "wb") as file:
        file.write(job["input"].encode(errors="replace"))  # halves of a surrogate pair are no text
    os.lseek(stdin, 0, os.SEEK_SET)
    os.dup2(stdin, 0)
    os.dup2(channel, 1)
    os.closerange(channel, 1 << 16)
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding="utf-8")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8")  # type: ignore[misc]
    status = _run_main(job["code"])
    _finish()
    return status


def _run_main(code: str) -> int:
    """Run a whole program; return its exit status."""
    try:
        exec(compile(code, "<solution>", "exec", dont_inherit=True), driver.new_module("__main__"))
    except SystemExit as end:
        return end.code & 0xFF if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # whatever it raises, it has failed
        return 1
    return 0


def _finish() -> None:
    """End as an interpreter does: wait for threads, then do what was left for the end, then write what is buffered."""
    threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing does, and for the same reason
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.__stdout__):
        if file and not file.closed:
            file.flush()


ROLES: dict[str, Callable[[int], int]] = {"answer": answer, "drive": driver.drive, "program": program}
