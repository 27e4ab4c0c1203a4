"""Write the package of a new plugin: a module, its ``pyproject.toml``, a page about it, and a test that passes."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template

from rlkit.component import KINDS
from rlkit.errors import PluginError, did_you_mean
from rlkit.plugins import load_plugins

_NAME = r"[a-z][a-z0-9]*([_-][a-z0-9]+)*"
_LONGEST = 50


def write_package(name: str, kind: str, folder: Path | None = None) -> Path:
    """Write a package that adds one component.

    Args:
        name: of the component; the package is called ``rlkit-NAME``.
        kind: one of ``rlkit.component.KINDS``.
        folder: where it goes; none: ``rlkit-NAME`` here.

    Returns:
        The folder.

    Raises:
        PluginError: the name or the kind will not do, or the folder holds something.
    """
    kind = kind.replace("-", "_")
    if kind not in KINDS:
        raise PluginError(f"--kind: there is no kind {kind!r}{did_you_mean(kind, KINDS)}")
    names = template_names(name) | {"kind": kind}
    check_name(name, kind)
    folder = folder or Path(names["package"])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PluginError(f"--out: {str(folder)!r} exists and is not empty; choose another folder")
    for path, template in _layout(names["module"], kind).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(_filled(template, names), encoding="utf-8")
    return folder


def check_name(name: str, kind: str) -> None:
    """Refuse what cannot be the name of a component and of a module, or is taken.

    Raises:
        PluginError: which of these it is.
    """
    wrong, plain = "", name.replace("-", "_")
    if not re.fullmatch(_NAME, name) or len(name) > _LONGEST:
        wrong = f"must be at most {_LONGEST} lower-case letters, digits and single hyphens, a letter first"
    elif name.startswith(("rlkit-", "rlkit_")):
        wrong = "the package gets 'rlkit-' before it by itself"
    elif keyword.iskeyword(plain) or hasattr(builtins, plain) or plain in _own_names(kind):
        wrong = "a word of Python, or of the template"
    elif plain in load_plugins().components(kind):
        wrong = f"the {kind} of this name is provided by {load_plugins().origin(kind, plain)}"
    if wrong:
        raise PluginError(f"NAME: {wrong}, got {name!r}; choose another")


def template_names(name: str) -> dict[str, str]:
    """Return what stands for a name in templates: its package, module, component and class."""
    plain = name.replace("-", "_")
    return {
        "package": f"rlkit-{plain.replace('_', '-')}",
        "module": f"rlkit_{plain}",
        "name": plain,
        "Name": "".join(part.capitalize() for part in plain.split("_")),
    }


def _own_names(kind: str) -> set[str]:
    """Return the names that a template gives to functions, classes, arguments and variables of its own."""
    code = _filled([f"{kind}.py.txt"], template_names("it") | {"kind": kind})
    names = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(ast.parse(code)) if isinstance(node, ast.arg)}
    names |= {node.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return names - {"it"}


def _layout(module: str, kind: str) -> dict[str, list[str]]:
    """Return the files of a package, each with the templates that it is made of."""
    return {
        "pyproject.toml": ["pyproject.toml.txt"],
        "README.md": ["README.md.txt"],
        f"{module}.py": [f"{kind}.py.txt"],
        f"tests/test_{module}.py": [f"{kind}_test.py.txt", "check_test.py.txt"],
    }


def _filled(templates: list[str], names: dict[str, str]) -> str:
    folder = files("rlkit.plugin_kit") / "templates"
    texts = [(folder / template).read_text(encoding="utf-8") for template in templates]
    return Template("\n\n".join(texts)).substitute(names)
