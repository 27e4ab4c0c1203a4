"""Run a model's Python against tests so that the model can neither forge the verdict nor harm the host.

The trainer (``pool``, ``broker``) decides. ``zygote`` and what it imports run in processes of their own and
import the standard library only. docs/sandbox.md has the threat model.
"""
