"""A seccomp filter: what code under test may not ask of the kernel.

A list of what is denied and not of what is allowed: C libraries differ in what they need. What is newer than
the list does not exist for the code, and neither do the calls of another architecture.
"""

from __future__ import annotations

import os
import struct

from rlkit.chat.verifiers.sandbox import kernel

X86_64, AARCH64 = 0xC000003E, 0xC00000B7
ARCHITECTURES = {"x86_64": (X86_64, 0), "aarch64": (AARCH64, 1)}

# name -> number on x86_64, number on aarch64 (None: it does not exist there)
DENIED: dict[str, tuple[int | None, int | None]] = {
    # new processes and programs; threads are allowed, see _clone
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "setsid": (112, 157), "setpgid": (109, 154),
    # the network; a socketpair stays inside
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242),
    # other processes: their memory, files, signals and scheduling
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140), "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # memory that no limit counts, and memory that outlives its process
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191), "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # file systems and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429),
    "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "mknod": (133, None), "mknodat": (259, 33), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "swapon": (167, 224), "swapoff": (168, 225),
    # wide doors into the kernel
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "personality": (135, 92), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "lookup_dcookie": (212, 18), "syslog": (103, 116),
    # the machine
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "acct": (163, 89), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "vhangup": (153, 58),
    "sethostname": (170, 161), "setdomainname": (171, 162),
}  # fmt: skip
ATTRIBUTES: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "lchown": (94, None),
    "fchown": (93, 55), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None), "futimesat": (261, None),
    "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "truncate": (76, 45),
}  # fmt: skip
"""What Landlock does not see: modes, owners, times and attributes of any file of the user (and, before its version 3,
their length)."""
ARGUED = {"clone": (56, 220), "clone3": (435, 435), "kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261),
          "prctl": (157, 167), "fcntl": (72, 25), "ioctl": (16, 29)}  # fmt: skip
SIGNAL_OTHERS = (8, 10, 15, 0x8901, 0x8902)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP: who gets which signal when a descriptor is ready."""
OWN_SAFETY = (kernel.PR_SET_PDEATHSIG, kernel.PR_SET_DUMPABLE)
"""What a process may not take back: that it ends with its parent, and that none of its kind reads it."""
FIRST_UNKNOWN = 451
X32 = 0x40000000
CLONE_THREAD = 0x00010000

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
LOAD, RETURN, IF_EQUAL, IF_AT_LEAST, IF_BITS = 0x20, 0x06, 0x15, 0x35, 0x45
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, SECOND_ARGUMENT = 0, 4, 16, 24
"""Offsets in struct seccomp_data; of arguments the low half, little endian."""


def _do(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _where(number: int, block: bytes) -> bytes:
    """Return a block that runs for one system call and ends it."""
    return _do(IF_EQUAL, number, 0, len(block) // 8) + block


def _when(argument: int, values: tuple[int, ...], then: int, otherwise: int) -> bytes:
    """Return a block that judges by the lower half of an argument, which is all that these calls look at."""
    tests = b"".join(_do(IF_EQUAL, value, 0, 1) + _do(RETURN, then) for value in values)
    return _do(LOAD, argument) + tests + _do(RETURN, otherwise)


def program(machine: str, pid: int, attributes: bool = False) -> bytes:
    """Return the filter as BPF.

    Args:
        machine: as ``os.uname()`` names it.
        pid: the process that the filter is for; it may signal itself only.
        attributes: whether it may change modes, owners and times of files.

    Raises:
        OSError: there is no table for this machine.
    """
    if machine not in ARCHITECTURES:
        raise OSError(f"seccomp: no table of system calls for {machine}")
    architecture, column = ARCHITECTURES[machine]
    number = {name: row[column] for name, row in ARGUED.items()}
    denied = [row[column] for row in (DENIED if attributes else DENIED | ATTRIBUTES).values()]
    threads_only = _do(LOAD, FIRST_ARGUMENT) + _do(IF_BITS, CLONE_THREAD, 0, 1) + _do(RETURN, ALLOW)
    return b"".join(
        (
            _do(LOAD, ARCHITECTURE) + _do(IF_EQUAL, architecture, 1, 0) + _do(RETURN, KILL),
            _do(LOAD, NUMBER),
            _do(IF_AT_LEAST, X32, 0, 1) + _do(RETURN, ENOSYS),
            _do(IF_AT_LEAST, FIRST_UNKNOWN, 0, 1) + _do(RETURN, ENOSYS),
            *(_where(call, _do(RETURN, EPERM)) for call in denied if call is not None),
            _where(number["clone3"], _do(RETURN, ENOSYS)),  # its flags lie in memory; libraries fall back to clone
            _where(number["clone"], threads_only + _do(RETURN, EPERM)),
            _where(number["kill"], _when(FIRST_ARGUMENT, (pid,), ALLOW, EPERM)),
            _where(number["tgkill"], _when(FIRST_ARGUMENT, (pid,), ALLOW, EPERM)),
            _where(number["prlimit64"], _when(FIRST_ARGUMENT, (0, pid), ALLOW, EPERM)),
            _where(number["prctl"], _when(FIRST_ARGUMENT, OWN_SAFETY, EPERM, ALLOW)),
            *(_where(number[call], _when(SECOND_ARGUMENT, SIGNAL_OTHERS, EPERM, ALLOW)) for call in ("fcntl", "ioctl")),
            _do(RETURN, ALLOW),
        )
    )


def install(attributes: bool = False) -> None:
    """Put the filter on the calling process; it needs no_new_privs.

    Args:
        attributes: whether it may change modes, owners and times of files.

    Raises:
        OSError: the kernel or the machine has none.
    """
    kernel.set_filter(program(os.uname().machine, os.getpid(), attributes))
