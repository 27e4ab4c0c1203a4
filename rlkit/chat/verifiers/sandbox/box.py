"""The box: namespaces in which there is no network, no other process, and a root of a few folders, read-only.

The zygote builds it once and stays inside; every child gets its own PID and mount namespaces on top.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rlkit.chat.verifiers.sandbox import kernel

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
PLACE = "/tmp"  # where a child finds its own file system, inside the box
PLACE_MEGABYTES = 32


def libraries() -> tuple[str, ...]:
    """Return the folders that running Python needs: its standard library, and shared libraries."""
    own = f"{sys.base_prefix}/lib"
    system = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo")
    folders = dict.fromkeys(os.path.realpath(path) for path in (own, *system) if os.path.isdir(path))
    return tuple(
        path for path in folders if not any(path != other and Path(path).is_relative_to(other) for other in folders)
    )


def build(root: str) -> None:
    """Move the calling process into a new box.

    Args:
        root: an empty folder to mount on.

    Raises:
        OSError: the host does not allow it.
    """
    _leave()
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    for path in libraries():
        os.makedirs(root + path, 0o755)
        _show(path, root + path)
    for path in DEVICES:
        os.makedirs(os.path.dirname(root + path), 0o755, exist_ok=True)
        Path(root + path).touch()
        kernel.mount(path, root + path, "", kernel.MS_BIND)
        kept = os.statvfs(path).f_flag & (kernel.MS_NOSUID | kernel.MS_NOEXEC)
        kernel.mount("", root + path, "", kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kept)  # its mode, say
    for path in ("/lib", "/lib64"):
        if os.path.islink(path):
            os.symlink(os.path.realpath(path), root + path)
    os.makedirs(root + PLACE, exist_ok=True)
    kernel.enter_root(root)
    kernel.mount(
        "", "/", "", kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
    )


def _leave() -> None:
    """Leave the host's namespaces; with a user namespace where the process may not do so without."""
    wanted = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    uid, gid = os.geteuid(), os.getegid()
    try:
        kernel.unshare(wanted)
    except PermissionError:
        kernel.unshare(wanted | kernel.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _show(source: str, target: str) -> None:
    """Bind a folder, read-only. What it forbids already (nodev, noexec) must be said again, or the kernel refuses."""
    kernel.mount(source, target, "", kernel.MS_BIND | kernel.MS_REC)
    kept = os.statvfs(target).f_flag & (kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    kernel.mount("", target, "", kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kept)


def own_place() -> None:
    """Give the calling process, in a mount namespace of its own, an empty file system to write to."""
    options = f"size={PLACE_MEGABYTES}m,nr_inodes=4096,mode=1777"
    kernel.mount("tmpfs", PLACE, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, options)
