"""Make ``tests/toys.py`` importable, and keep the tests off the network and to built-in components."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RLKIT_PLUGINS", "")  # without the plugins that happen to be installed here
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
