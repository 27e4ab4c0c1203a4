"""The few system calls of Linux that Python 3.11 has no name for, through ctypes."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

LAST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(name: str, result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number).lower()}")
    return result


def syscall(name: str, number: int, *arguments: object) -> int:
    """Call the kernel by number.

    Raises:
        OSError: with ``name`` in its text.
    """
    return _checked(name, _libc.syscall(ctypes.c_long(number), *arguments))


def unshare(flags: int) -> None:
    """Leave namespaces; a new PID namespace begins with the next fork."""
    _checked("unshare", _libc.unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount a file system; empty texts stand for null pointers."""
    texts = [ctypes.c_char_p(text.encode() or None) for text in (source, target, kind)]
    options = ctypes.c_char_p(data.encode() or None)
    _checked(f"mount {target}", _libc.mount(*texts, ctypes.c_ulong(flags), options))


def enter_root(folder: str) -> None:
    """Make a mounted folder the root, and let go of the old one (``pivot_root(".", ".")``, see its manual page)."""
    os.chdir(folder)
    number = 155 if os.uname().machine == "x86_64" else 41
    syscall("pivot_root", number, b".", b".")
    _checked("umount", _libc.umount2(b".", ctypes.c_int(MNT_DETACH)))
    os.chdir("/")


def prctl(option: int, *values: int) -> None:
    """Set an attribute of the calling process."""
    padded = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    _checked("prctl", _libc.prctl(ctypes.c_int(option), *padded))


def set_filter(program: bytes) -> None:
    """Install a seccomp filter on the calling process, for good.

    Args:
        program: BPF instructions of eight bytes each.
    """
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    header = Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    mode_filter = 2
    result = _libc.prctl(
        ctypes.c_int(PR_SET_SECCOMP), ctypes.c_ulong(mode_filter), ctypes.byref(header), ctypes.c_ulong(0), 0
    )
    _checked("seccomp", result)


def shrink_bounding_set() -> None:
    """Take away every capability that a program could bring back; without the right to do so, nothing happens."""
    for capability in range(LAST_CAPABILITY + 1):
        _libc.prctl(ctypes.c_int(PR_CAPBSET_DROP), ctypes.c_ulong(capability), 0, 0, 0)


def drop_capabilities() -> None:
    """Give up every capability that the calling process has."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    _checked("capset", _libc.capset(header, (ctypes.c_uint32 * 6)()))
