"""Find the package that is to be checked, and let rlkit find it too, installed or not, for as long as it is checked."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlkit.errors import PluginError
from rlkit.plugins import GROUP, load_plugins


@dataclass(frozen=True)
class Package:
    """A package with plugins.

    Args:
        name: of the distribution; of the module where there is none.
        version: of the distribution.
        points: entry points of the group ``rlkit``: their names, and the modules that they name.
        paths: folders that must be on the path to import it; none: it is installed.
    """

    name: str
    version: str
    points: Mapping[str, str]
    paths: tuple[str, ...] = field(default=())


def find_package(wanted: str | Path) -> Package:
    """Find a package by its folder, by the name of its distribution, or by that of its module.

    Raises:
        PluginError: there is none, or it has no entry point of the group ``rlkit``.
    """
    if Path(wanted).is_dir():
        return _in_folder(Path(wanted).resolve())
    try:
        return _installed(distribution(str(wanted)))
    except (PackageNotFoundError, ValueError):
        pass
    for point in entry_points(group=GROUP):
        if point.module.split(".")[0] == str(wanted) and point.dist is not None:
            return _installed(point.dist)
    if _is_module(str(wanted)):
        return Package(str(wanted), "0", {str(wanted): str(wanted)}, (os.getcwd(),))
    raise PluginError(
        f"PKG: nothing is called {str(wanted)!r}; name a folder with a pyproject.toml, a package, or a module"
    )


def _is_module(name: str) -> bool:
    return name.isidentifier() and find_spec(name) is not None


def _in_folder(folder: Path) -> Package:
    project = folder / "pyproject.toml"
    if not project.is_file():
        raise PluginError(f"PKG: no pyproject.toml in {str(folder)!r}; name the folder of a package")
    try:
        table = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
    except tomllib.TOMLDecodeError as error:
        raise PluginError(f"{project}: not valid TOML: {error}; mend it") from error
    points = table.get("entry-points", {}).get(GROUP, {})
    source = folder / "src" if (folder / "src").is_dir() else folder
    return _named(Package(table.get("name", folder.name), table.get("version", "0"), points, (str(source),)), project)


def _installed(found: Distribution) -> Package:
    points = {point.name: point.value for point in found.entry_points if point.group == GROUP}
    return _named(Package(found.name, found.version, points), found.name)


def _named(package: Package, where: Any) -> Package:
    if not package.points:
        raise PluginError(
            f'{where}: no entry point of the group {GROUP!r}; add [project.entry-points.{GROUP}] with name = "module"'
        )
    return package


@contextmanager
def findable(*packages: Package, only: bool = True) -> Iterator[None]:
    """Let rlkit find packages as if they were installed.

    Args:
        packages: the packages.
        only: leave out all others that are installed.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(_as_it_was())
        for package in packages:
            if package.paths:
                _write_metadata(folder, package)
                sys.path[:0] = [str(folder), *package.paths]
        if only:
            os.environ["RLKIT_PLUGINS"] = ",".join(package.name for package in packages)
        else:
            os.environ.pop("RLKIT_PLUGINS", None)
        importlib.invalidate_caches()
        load_plugins.cache_clear()
        yield


def _write_metadata(folder: Path, package: Package) -> None:
    """Write what an installer would leave behind."""
    info = folder / f"{package.name.replace('-', '_')}-{package.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n", encoding="utf-8"
    )
    lines = [f"{name} = {target}" for name, target in package.points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]), encoding="utf-8")


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Put back the path, the environment and the modules afterwards."""
    path, variable, modules = [*sys.path], os.environ.get("RLKIT_PLUGINS"), {*sys.modules}
    try:
        yield
    finally:
        added = {*sys.path} - {*path}
        sys.path[:] = path
        os.environ.pop("RLKIT_PLUGINS", None)
        if variable is not None:
            os.environ["RLKIT_PLUGINS"] = variable
        for name in {*sys.modules} - modules:
            place = getattr(sys.modules[name], "__file__", None)
            if place and any(Path(place).is_relative_to(folder) for folder in added):
                del sys.modules[name]
        importlib.invalidate_caches()
        load_plugins.cache_clear()
