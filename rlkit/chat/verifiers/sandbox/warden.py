"""The warden of one child: starts it in namespaces of its own, ends it in time, and leaves nothing behind.

It is trusted and outlives the child. It reports when the child has ended; when the trainer hangs up, it ends the child.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any

from rlkit.chat.verifiers.sandbox import inside, kernel
from rlkit.chat.verifiers.sandbox.confine import confine

CHANNEL = 3
"""The one descriptor of a child, next to the three standard ones, which lead nowhere."""


def guard(order: Mapping[str, Any], channel: int, line: int) -> None:
    """Run one child from start to end, in a process that the zygote has forked for it.

    Args:
        order: role, layers and limits.
        channel: the child's end of its channel.
        line: this warden's end of its own line to the trainer.
    """
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if "box" in order["layers"]:
        kernel.unshare(kernel.CLONE_NEWPID | kernel.CLONE_NEWNS)
    else:
        os.mkdir(order["folder"], 0o700)
        if "user" in order["layers"]:
            os.chown(order["folder"], order["uid"], order["uid"])
    child = os.fork()
    if child == 0:
        _be_child(order, channel)
    os.close(channel)
    report = _watch(child, line, order["seconds"] + 1)
    if "box" not in order["layers"]:  # a PID namespace dies with its first process, and a mount namespace is no file
        _sweep()
        _remove(order["folder"])
    socket.socket(fileno=line).send(json.dumps(report).encode())


def _be_child(order: Mapping[str, Any], channel: int) -> None:
    """Become the child; never returns."""
    code = 1
    try:
        os.dup2(channel, CHANNEL)
        os.closerange(CHANNEL + 1, 1 << 16)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        confine(order, order["folder"])
        code = inside.ROLES[order["role"]](CHANNEL)
    finally:
        os._exit(code)


def _watch(child: int, line: int, seconds: float) -> dict[str, Any]:
    """Wait until the child ends, its time is up, or the trainer hangs up; kill it; return how it ended."""
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.register(ended, select.POLLIN)
    stopped = ended not in dict(poll.poll(seconds * 1000))
    os.kill(child, signal.SIGKILL)  # harmless where it has ended: it is not reaped yet
    _, status, usage = os.wait4(child, 0)
    os.close(ended)
    return {"stopped": stopped, "code": os.waitstatus_to_exitcode(status), "memory_mb": usage.ru_maxrss >> 10}


def _sweep() -> None:
    """Kill and reap what the child left behind; orphans became children of this process, the subreaper."""
    while True:
        try:
            reaped, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not reaped:
            for orphan in _children():
                os.kill(orphan, signal.SIGKILL)
            time.sleep(0.002)


def _children() -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
        found += [int(name)] if parent == os.getpid() else []
    return found


def _remove(folder: str) -> None:
    """Remove a folder whatever is in it: unreadable folders, and folders nested deeper than a path is long."""
    names = itertools.count()
    os.chmod(folder, 0o700)
    while directories := [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]:
        for directory in directories:
            os.chmod(directory, 0o700)
            for entry in list(os.scandir(directory)):
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
                    os.rename(entry.path, f"{folder}/-{next(names)}")
                else:
                    os.unlink(entry.path)
            os.rmdir(directory)
    for entry in list(os.scandir(folder)):
        os.unlink(entry.path)
    os.rmdir(folder)
