"""Settings of the reward that runs code."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from rlkit.config.rewards import RewardSettings


class CodeSettings(RewardSettings):
    """Chat: whether the completion's Python passes the tests that its row carries; it runs in a sandbox."""

    type: Literal["code"] = "code"
    domains: ClassVar[tuple[str, ...]] = ("chat",)
    verifies: ClassVar[bool] = True
    score: Literal["all", "share"] = "all"
    """``all``: 1 where every test passes, else 0. ``share``: the share of tests that pass."""
    run_seconds: float = Field(5.0, gt=0, le=600)
    """Wall clock for one sample, all of its tests together; what takes longer scores 0. ``timeout_seconds``, which ends
    a run whose sandbox hangs, must be twice as long at least."""
    memory_mb: int = Field(512, ge=64)
    """Address space of a process that runs code, of which the interpreter takes about 40."""
    max_characters: int = Field(150_000, ge=1)
    """A longer completion scores 0 unread."""
    workers: int = Field(0, ge=0, le=256)
    """Samples that run at once; 0: one per core."""
    isolation: Literal["auto", "namespaces", "bubblewrap", "seccomp", "rlimits"] = "auto"
    """The weakest isolation that will do; a host that offers less is refused (``rlkit doctor`` shows what it offers).
    The strongest that is there is used in any case. ``auto``: whatever it is."""

    @model_validator(mode="after")
    def _leaves_room(self) -> CodeSettings:
        if self.timeout_seconds < 2 * self.run_seconds:
            raise ValueError(
                f"run_seconds {self.run_seconds:g} leaves no room in timeout_seconds {self.timeout_seconds:g}; "
                f"set timeout_seconds to {2 * self.run_seconds:g} or more"
            )
        return self
