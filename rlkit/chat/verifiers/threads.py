"""Calls in threads that nothing waits for: Ctrl-C, or the first error, ends them all."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def call_each(call: Callable[[Item], Value], items: Sequence[Item], threads: int) -> list[Value]:
    """Return what a function makes of each item, in order; the first error is raised.

    Unlike an executor's, its threads take no further items then, and the end of the process does not wait for them.

    Args:
        call: the function.
        items: what it gets.
        threads: how many calls are made at once at most.
    """
    todo: queue.SimpleQueue[tuple[int, Item]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Value] | BaseException] = queue.SimpleQueue()
    stop = threading.Event()
    for numbered in enumerate(items):
        todo.put(numbered)

    def work() -> None:
        with suppress(queue.Empty):
            while not stop.is_set():
                number, item = todo.get_nowait()
                try:
                    done.put((number, call(item)))
                except BaseException as error:  # handed to the caller, whatever it is
                    done.put(error)

    for _ in range(min(threads, len(items))):
        threading.Thread(target=work, daemon=True).start()
    found: dict[int, Value] = {}
    try:
        while len(found) < len(items):
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            found[result[0]] = result[1]
    finally:
        stop.set()
    return [found[number] for number in range(len(items))]
