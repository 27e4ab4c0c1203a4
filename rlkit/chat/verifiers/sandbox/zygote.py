"""The zygote: a small process without a secret that forks a fresh child for every sample.

It never sees a test or a line of the model's code: these go to the children directly, so that no child can find in
its memory what belongs to another, or to the other side of the same sample.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import site
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rlkit.chat.verifiers.sandbox import box, confine, kernel, landlock, syscall_filter, warden

PRELOADED = (
    *("abc", "bisect", "cmath", "collections", "contextlib", "copy", "dataclasses", "datetime", "decimal", "enum"),
    *("fractions", "functools", "hashlib", "heapq", "io", "itertools", "json", "math", "numbers", "operator"),
    *("queue", "random", "re", "statistics", "string", "struct", "time", "types", "typing", "collections.abc"),
)
"""What solutions import most; forked children have it at no cost."""


def main(arguments: list[str]) -> None:
    """Run ``probe UID FOLDER`` or ``serve DESCRIPTOR FOLDER LAYER...``."""
    verb, *rest = arguments
    if verb == "probe":
        print(json.dumps(probe(int(rest[0]), rest[1])))
    else:
        serve(int(rest[0]), rest[1], rest[2:])


def probe(uid: int, folder: str) -> dict[str, str]:
    """Try every layer, each in a process of its own.

    Args:
        uid: a user that nothing belongs to.
        folder: an empty one.

    Returns:
        layer -> why it cannot be had; empty where it can.
    """

    def filtered() -> None:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        syscall_filter.install()

    def landlocked() -> None:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        landlock.confine(box.libraries(), box.DEVICES, folder)

    def another_user() -> None:
        confine.become(uid)
        if not os.access(os.__file__, os.R_OK):
            raise OSError("the interpreter's libraries are closed to other users")

    attempts = {"landlock": landlocked, "filter": filtered, "user": another_user}
    attempts["box"] = lambda: _in_box(folder, lambda: None)
    attempts["user in box"] = lambda: _in_box(folder, another_user)
    return {layer: _tried(attempt) for layer, attempt in attempts.items()}


def _in_box(folder: str, attempt: Callable[[], None]) -> None:
    """Build a box and do something in the namespaces that a child would get."""
    box.build(folder)
    kernel.unshare(kernel.CLONE_NEWPID | kernel.CLONE_NEWNS)

    def inside() -> None:
        box.own_place()
        attempt()

    problem = _tried(inside)
    if problem:
        raise OSError(problem)


def _tried(attempt: Callable[[], None]) -> str:
    """Return why an attempt fails, made in a process that ends with it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        problem = "ended early"
        try:
            attempt()
            problem = ""
        except (OSError, ImportError, ValueError) as error:
            problem = str(error)
        finally:
            os.write(writer, problem.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        problem = file.read()
    _, status = os.waitpid(child, 0)
    return problem or ("killed" if status else "")


def serve(descriptor: int, folder: str, layers: Iterable[str]) -> None:
    """Fork a warden for every order that comes over the control socket, until it closes.

    Args:
        descriptor: of the control socket, where orders come as JSON beside two descriptors.
        folder: the children's folders lie here, or it is mounted on.
        layers: what this host offers.
    """
    for name in PRELOADED:
        importlib.import_module(name)
    control = socket.socket(fileno=descriptor)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory is short, this goes and not the trainer
    site.setquit()  # "exit" and "quit", which an isolated interpreter lacks and programs call
    sys.argv[:] = ["solution.py"]  # programs ask whether they have arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # wardens are reaped by the kernel
    if "box" in layers:
        box.build(folder)
    else:
        os.makedirs(folder, 0o711, exist_ok=True)  # bubblewrap has a file system of its own
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    sys.path[:] = [path for path in sys.path if "lib" in path.split(os.sep)[-2:] or path.startswith(sys.base_prefix)]
    gc.freeze()
    control.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 2)
        if not message:
            break
        if os.fork() == 0:
            _become_warden(control, json.loads(message), descriptors)
        for number in descriptors:
            os.close(number)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, 0)  # wardens hear that the trainer is gone as well
    if "box" not in layers:
        os.rmdir(folder)


def _become_warden(control: socket.socket, order: dict[str, Any], descriptors: list[int]) -> None:
    """Never returns."""
    try:
        control.close()
        warden.guard(order, *descriptors)
    finally:
        os._exit(0)
