"""The verb ``doctor``: what this host has, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

PACKAGES = ("rlkit", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    torch: Annotated[bool, typer.Option(help="Import torch to ask for its devices, which takes seconds.")] = True,
) -> None:
    """Show versions, devices, disk, and the sandbox for code.

    Nothing is written, and nothing leaves the host.
    """
    facts = [*_versions(), *_machine(), *_sandbox(), *(_devices() if torch else ())]
    if as_json:
        import json

        typer.echo(json.dumps(dict(facts), indent=2))
    else:
        for name, value in facts:
            typer.echo(f"{name:<22}{value}")


def _versions() -> Iterator[tuple[str, str]]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    yield "python", platform.python_version()
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"


def _machine() -> Iterator[tuple[str, str]]:
    import os
    import platform
    import shutil
    import tempfile

    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "processor cores", str(usable)
    yield "memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.0f} GiB"
    for name, folder in (("disk, this folder", "."), ("disk, temporary", tempfile.gettempdir())):
        disk = shutil.disk_usage(folder)
        yield name, f"{disk.free / (1 << 30):.0f} of {disk.total / (1 << 30):.0f} GiB free"


def _sandbox() -> Iterator[tuple[str, str]]:
    from rlkit.chat.verifiers.sandbox import isolation
    from rlkit.errors import TrainingError

    try:
        host = isolation.detect()
    except TrainingError as error:
        yield "sandbox", str(error)
        return
    yield "sandbox", f"{host.level}: {isolation.MEANING[host.level]}"
    yield "sandbox layers", ", ".join((*host.layers(host.level), "rlimits"))
    for layer in isolation.lacking(host):
        yield f"  without {layer}", host.missing[layer]


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    yield "torch devices", torch.__version__ + (f", CUDA {torch.version.cuda}" if torch.version.cuda else ", no CUDA")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield f"  cuda:{index}", f"{device.name}, {device.total_memory / (1 << 30):.0f} GiB"
    if torch.backends.mps.is_available():
        yield "  mps", "available"
