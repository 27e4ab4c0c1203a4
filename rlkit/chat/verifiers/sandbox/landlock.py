"""Landlock: the part of the file system that code under test may see, for hosts without namespaces.

Needs no privilege. Besides files it keeps a process from tracing, and so from reading the memory, environment and
files of, any process outside of its own domain (docs.kernel.org, userspace-api/landlock).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from rlkit.chat.verifiers.sandbox import kernel

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION = 1  # as a flag of create_ruleset
PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1, 2, 4, 8, 1 << 14
RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # from which version on a path has how many rights
CONNECT_AND_BIND, SIGNAL_AND_ABSTRACT_SOCKETS = 3, 3


def version() -> int:
    """Return the kernel's version of Landlock.

    Raises:
        OSError: it has none.
    """
    return kernel.syscall("landlock", CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION))


def confine(readable: Iterable[str], devices: Iterable[str], writable: str) -> None:
    """Deny all files but these to the calling process; it needs no_new_privs.

    Args:
        readable: folders with code and libraries.
        devices: files that may be read and written.
        writable: the one folder where anything may be done.
    """
    found = version()
    rights = (1 << max(count for since, count in RIGHTS.items() if since <= found)) - 1
    network = CONNECT_AND_BIND if found >= 4 else 0
    scoped = SIGNAL_AND_ABSTRACT_SOCKETS if found >= 6 else 0
    attributes = struct.pack("=QQQ", rights, network, scoped)[: 24 if found >= 6 else 16 if found >= 4 else 8]
    ruleset = kernel.syscall(
        "landlock", CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)
    )
    for path in readable:
        _allow(ruleset, path, EXECUTE | READ_FILE | READ_DIR)
    for path in devices:
        _allow(ruleset, path, READ_FILE | WRITE_FILE)
    _allow(ruleset, writable, rights)
    kernel.syscall("landlock", RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    if not os.path.exists(path):
        return
    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", rights, beneath)
    kernel.syscall("landlock", ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(PATH_BENEATH), rule, ctypes.c_uint32(0))
    os.close(beneath)
