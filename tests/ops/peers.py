"""Definitions out of other toolkits' source, without installing or importing these: pure tensor code to compare with.

``RLKIT_TRL_WITH_PPO`` names a folder with trl 1.12 unpacked in it, the last that had a PPO trainer; ``RLKIT_OPENRLHF``
one with openrlhf. A test that asks for one skips where it is not given. RLOO's code is taken from the installed trl.
"""

import __future__

import ast
import itertools
import math
import os
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional, Union

import numpy as np
import pytest
import torch
from torch import nn

TRL_RLOO = ("", "trl/trainer/rloo_trainer.py")
TRL_PPO = ("RLKIT_TRL_WITH_PPO", "trl/experimental/ppo/ppo_trainer.py")
OPENRLHF_LOSS = ("RLKIT_OPENRLHF", "openrlhf/models/loss.py")
OPENRLHF_UTILS = ("RLKIT_OPENRLHF", "openrlhf/models/utils.py")
OPENRLHF_EXPERIENCE = ("RLKIT_OPENRLHF", "openrlhf/trainer/ppo_utils/experience_maker.py")
OPENRLHF_KL = ("RLKIT_OPENRLHF", "openrlhf/trainer/ppo_utils/kl_controller.py")
KNOWN = {"torch": torch, "nn": nn, "np": np, "math": math, "itertools": itertools, "Optional": Optional, "Union": Union}


def parsed(source: tuple[str, str]) -> ast.Module:
    """Return a peer's file; skip the test where there is none."""
    variable, file = source
    folder = os.environ.get(variable) if variable else Path(str(find_spec("trl").origin)).parent.parent
    if not folder:
        pytest.skip(f"{variable} does not name a folder")
    return ast.parse((Path(folder) / file).read_text(encoding="utf-8"))


def definitions(source: tuple[str, str], *names: str, **known: Any) -> SimpleNamespace:
    """Return functions, classes and methods of a peer's file by their names."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = [node for node in ast.walk(parsed(source)) if isinstance(node, kinds) and node.name in names]
    assert {node.name for node in found} == set(names)
    return SimpleNamespace(**_run(found, {"Tuple": tuple, "List": list, **known}))


def assignments(source: tuple[str, str], function: str, names: set[str], **known: Any) -> SimpleNamespace:
    """Run, in their order, the statements of a peer's function that set the named variables; loops over one, whole."""
    body = next(
        node for node in ast.walk(parsed(source)) if isinstance(node, ast.FunctionDef) and node.name == function
    )
    found = sorted((node for node in ast.walk(body) if _sets(node, names)), key=lambda node: node.lineno)
    loops = [node for node in found if isinstance(node, ast.For)]
    inside = {id(child) for loop in loops for child in ast.walk(loop) if child is not loop}
    return SimpleNamespace(**_run([node for node in found if id(node) not in inside], known))


def _sets(node: ast.AST, names: set[str]) -> bool:
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id in names for target in node.targets)
    return isinstance(node, ast.For) and isinstance(node.target, ast.Name) and node.target.id in names


def _run(nodes: list[Any], known: dict[str, Any]) -> dict[str, Any]:
    module = ast.fix_missing_locations(ast.Module(body=nodes, type_ignores=[]))
    namespace = {**KNOWN, **known}
    exec(compile(module, "peer", "exec", flags=__future__.annotations.compiler_flag), namespace)
    return namespace
