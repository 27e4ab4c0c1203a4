"""The tests' side: runs them against proxies of the model's functions, which live in another process.

A proxy sends its arguments as plain data and returns what came back. The verdict goes to the trainer over a channel
that the model's code has no access to.
"""

from __future__ import annotations

import ast
import builtins
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from rlkit.chat.verifiers.sandbox import frames, plain

MAX_NAMES = 1000
ENDS_OF_LOOPS = (StopIteration, StopAsyncIteration)


class Unsupported(BaseException):
    """A call or its result cannot cross. Not an ``Exception``, so that no test catches it."""


class Calls:
    """What is open between the tests and the trainer: the channel, and whether something could not cross."""

    def __init__(self, channel: int) -> None:
        self.channel = channel
        self.unsupported = ""

    def ask(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the model.

        Raises:
            Unsupported: an argument, or the result, has no plain form.
            Exception: the class that the function raised, where Python has it; else its nearest base.
        """
        try:
            options = {key: plain.encode(value) for key, value in kwargs.items()}
            frames.write(self.channel, {"call": name, "args": plain.encode(list(args)), "kwargs": options})
        except (plain.NotPlain, RecursionError, frames.TooLong) as error:
            self._cannot(f"{name} is called with {error}")
        reply = frames.read(self.channel)
        if reply is None:
            raise Unsupported("the trainer hung up")
        if "unsupported" in reply:
            self._cannot(f"{name} returns {reply['unsupported']}")
        if "error" in reply:
            raise _exception(reply["error"], reply["args"])
        _change([*args, *kwargs.values()], reply.get("changed", []))
        return plain.decode(reply["value"])

    def _cannot(self, reason: str) -> None:
        self.unsupported = reason
        raise Unsupported(reason)


def _change(args: list[Any], changed: list[Any]) -> None:
    """Bring home what a function without a value did to its arguments (it sorts a list in place, say)."""
    for argument, tree in zip(args, changed):
        if isinstance(argument, list | bytearray):
            argument[:] = plain.decode(tree)
        elif isinstance(argument, dict | set):
            value = plain.decode(tree)
            argument.clear()
            argument.update(value)


def _exception(name: str, tree: list[Any]) -> Exception:
    """Return an exception that ends a test; SystemExit would end more, and StopIteration only a loop of the test."""
    kind, args = getattr(builtins, name, None), plain.decode(tree)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(kind, ENDS_OF_LOOPS):
        return RuntimeError(name, *args)
    try:
        return kind(*args)
    except (TypeError, ValueError):  # a group wants exceptions, which do not cross
        return RuntimeError(name, *args)


def drive(channel: int) -> int:
    """Run the tests that the trainer sends; tell it each verdict, and when there are no more."""
    job = frames.read(channel)
    if job is None:
        return 0
    calls = Calls(channel)
    for verdict in _verdicts(job, calls):
        frames.write(channel, verdict)
        if job["until_failure"] and "passed" not in verdict:
            break
    frames.write(channel, {"done": True})
    return 0


def new_module(name: str) -> dict[str, Any]:
    """Return the names of a new module in ``sys.modules``, where dataclasses, pickle and typing look for them."""
    sys.modules[name] = types.ModuleType(name)
    return vars(sys.modules[name])


def _verdicts(job: dict[str, Any], calls: Calls) -> Iterator[dict[str, str]]:
    names = new_module("tests")
    for source in job["setup"]:
        problem = _run(functools.partial(_execute, source, names), calls)
        if problem:
            yield {"unsupported": f"the tests' setup: {'; '.join(problem.values())}"}
            return
    entry = job["entry_point"]
    for source in job["tests"]:
        wanted = {entry} if entry else _free_names(source, names) & {*job["names"]}
        names |= {name: _proxy(name, calls) for name in wanted}
        yield _run(functools.partial(_test, source, names, entry), calls) or {"passed": ""}


def _proxy(name: str, calls: Calls) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        return calls.ask(name, args, kwargs)

    function.__name__ = function.__qualname__ = name
    return function


def _test(source: str, names: dict[str, Any], entry: str) -> None:
    """Run one test; where it defines ``check``, as HumanEval's do, that function is the test."""
    before = names.get("check")  # of the setup, or the function under test
    _execute(source, names)
    check = names.get("check")
    if entry and check is not before and isinstance(check, types.FunctionType) and check.__code__.co_argcount == 1:
        names["check"] = before
        check(names[entry])


def _execute(source: str, names: dict[str, Any]) -> None:
    try:
        code = compile(source, "<tests>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise Unsupported(f"does not compile: {error}") from error
    exec(code, names)


def _run(test: Callable[[], None], calls: Calls) -> dict[str, str]:
    """Return how a test fails; empty where it passes."""
    calls.unsupported = ""
    try:
        test()
    except Unsupported as error:
        return {"unsupported": str(error)}
    except BaseException as error:  # whatever a test raises, it has failed
        return {"unsupported": calls.unsupported} if calls.unsupported else {"failed": _short(error)}
    return {"unsupported": calls.unsupported} if calls.unsupported else {}


def _short(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # an assert that shows a number of 5,000 digits, say
        text = ""
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__


def _free_names(source: str, defined: dict[str, Any]) -> set[str]:
    """Return the names that a test reads and that neither it, nor the setup, nor Python defines."""
    try:
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    except (SyntaxError, ValueError):
        return set()  # running the test says so
    read = {node.id for node in nodes if isinstance(node.ctx, ast.Load)}
    return read - {node.id for node in nodes if isinstance(node.ctx, ast.Store)} - {*defined} - {*dir(builtins)}
