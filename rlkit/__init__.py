"""rlkit: recipes, plugins and fast online learning for language models and generative recommenders."""

import importlib
import os
from typing import Any

# TRL's trainers report their use to the hub otherwise; read when huggingface_hub is imported, so said here.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["RLHFConfig", "RLHFPipeline", "__version__", "create_rlhf_pipeline"]

_HOMES = {
    "RLHFConfig": "rlkit.rlhf_config",
    "RLHFPipeline": "rlkit.rlhf_pipeline",
    "create_rlhf_pipeline": "rlkit.rlhf_pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: ``import rlkit`` itself loads nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
