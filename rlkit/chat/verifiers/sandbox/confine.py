"""What a child gives up, in this order, before it reads the first byte that is not ours."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping
from typing import Any

from rlkit.chat.verifiers.sandbox import box, kernel, landlock, syscall_filter

FILE_BYTES = 16 << 20
OPEN_FILES = 32
THREADS = 64


def confine(order: Mapping[str, Any], folder: str) -> None:
    """Confine the calling process for good.

    Args:
        order: ``layers`` (see isolation.py), ``memory_mb``, ``seconds``, ``uid``.
        folder: its private temporary folder; the box has its own.

    Raises:
        OSError: a layer that was found when the sandbox started is refused now.
    """
    layers = order["layers"]
    if "box" in layers:
        box.own_place()
        folder = box.PLACE
    os.chdir(folder)
    os.umask(0o077)
    limit(order["memory_mb"], order["seconds"], processes=THREADS if {"box", "user", "bubblewrap"} & {*layers} else 0)
    kernel.shrink_bounding_set()
    if {"user", "user in box"} & {*layers}:
        become(order["uid"])
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # nobody of the same user reads its memory, environment or files
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if "landlock" in layers:
        landlock.confine(box.libraries(), box.DEVICES, folder)
    if "filter" in layers:
        syscall_filter.install(attributes=bool({"box", "user"} & {*layers}))  # else they are those of the user's files


def limit(memory_mb: int, seconds: int, processes: int) -> None:
    """Set resource limits, which a process may lower but never raise."""
    limits = {
        resource.RLIMIT_AS: memory_mb << 20,
        resource.RLIMIT_CPU: seconds + 1,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for name, wanted in limits.items():
        _, hard = resource.getrlimit(name)
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(name, (value, value))


def become(uid: int) -> None:
    """Become a user that nothing on the host belongs to."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
