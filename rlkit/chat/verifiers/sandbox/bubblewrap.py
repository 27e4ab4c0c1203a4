"""Bubblewrap: namespaces for the zygote and all of its children together, where a process may not make its own.

Distributions that forbid namespaces to ordinary programs often allow them to ``bwrap``. Samples share its PID namespace
and its temporary file system; the filter and Landlock keep them apart.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import rlkit
from rlkit.chat.verifiers.sandbox import box


def program() -> str | None:
    """Return the path of ``bwrap``, if it is installed."""
    return shutil.which("bwrap")


def wrapped(command: Sequence[str]) -> list[str]:
    """Return a command that runs a zygote's command in bubblewrap.

    Args:
        command: its first part is the interpreter, which is replaced by the one that a virtual environment stands on.
    """
    bwrap = program()
    assert bwrap
    interpreter = os.path.realpath(sys.executable)
    shown = [*box.libraries(), interpreter, str(Path(rlkit.__file__).parent)]
    links = [path for path in ("/lib", "/lib64") if os.path.islink(path)]
    return [
        *(bwrap, "--unshare-all", "--cap-drop", "ALL"),
        *(part for path in shown for part in ("--ro-bind", path, path)),
        *(part for path in links for part in ("--symlink", os.path.realpath(path), path)),
        *(part for path in box.DEVICES for part in ("--dev-bind", path, path)),
        *("--tmpfs", "/tmp", "--chdir", "/", "--", interpreter, *command[1:]),
    ]
