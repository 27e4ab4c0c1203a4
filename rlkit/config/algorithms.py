"""Settings of the built-in algorithms."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from rlkit.component import Settings, Slot


class SFTSettings(Settings):
    """Supervised fine-tuning: whole sequences where the domain has them (compact template), else completions only."""

    type: Literal["sft"] = "sft"
    consumes: ClassVar[tuple[str, ...]] = ("Demonstration",)
    produces: ClassVar[tuple[str, ...]] = ("policy",)
    roles: ClassVar[tuple[str, ...]] = ("policy",)
    # Classes whose fields ``train.extra`` may name besides those of ``TrainingArguments``.
    training_arguments: ClassVar[tuple[str, ...]] = (
        "trl.trainer.base_config:_BaseConfig",
        "trl.trainer.sft_config:SFTConfig",
    )

    max_tokens: int = Field(512, ge=8)
    """Demonstrations (instruct template, chat): longer ones are cut on the left, so that the answer stays."""
    packing: bool = False
    """Demonstrations: put several into a row of ``max_tokens`` (best fit decreasing), kept apart by their positions.

    ``train.batch_size`` then counts such rows. Models that would mix what shares a row are refused.
    """
    padding_free: bool = False
    """Demonstrations: lay the rows of a micro-batch end to end instead of padding them, as packing does."""
    neftune_alpha: float | None = Field(None, gt=0)
    """Demonstrations: noise on embeddings, uniform within alpha / sqrt(tokens x width); 5 is usual (2310.05914)."""


class ReferenceSyncSettings(Settings):
    """Let the reference follow the policy (TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656)."""

    mix: float = Field(0.6, gt=0, le=1)
    """reference <- mix * policy + (1 - mix) * reference."""
    every_steps: int = Field(512, ge=1)
    """Optimizer steps between two synchronizations; takes effect where a rollout ends."""


class ValidateSettings(Settings):
    """Looking at the valid split while a policy trains."""

    every_steps: int | None = Field(None, ge=1)
    """Optimizer steps between two looks; none: ``train.evaluate_every_steps``."""
    prompts: int = Field(500, ge=1)
    """How many valid prompts are looked at, the same ones every time."""
    num_beams: int = Field(50, ge=1)
    """Recommendation: evaluation beams; wider than the training group, or harm stays unseen."""
    select_by: str | None = None
    """The best checkpoint has the highest value of this metric; none: the domain's own; ``last`` keeps the last one."""


class SkipSolvedSettings(Settings):
    """Keep each prompt's pass rate: leave out those that are always or never solved, and log rewards by difficulty."""

    visits: int | None = Field(2, ge=1)
    """A prompt whose last so many visits all passed, or all failed, in every completion is skipped; none: none is."""
    passed_at: float = 1.0
    """A completion passes where its whole reward is at least this."""
    passes: int = Field(4, ge=1)
    """Passes over the prompts after which a skipped one is tried again."""


class PolicySettings(Settings):
    """What every online algorithm has."""

    consumes: ClassVar[tuple[str, ...]] = ("Prompt",)
    produces: ClassVar[tuple[str, ...]] = ("policy",)
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference", "reward")

    rollout: Annotated[Settings, Slot("rollout", "beam")] = Field(default_factory=lambda: _default_rollout())
    """How completions are made."""
    rewards: tuple[Annotated[Settings, Slot("reward")], ...] = Field(min_length=1)
    """The parts of the reward; weighted and added."""
    group_size: int = Field(16, ge=1)
    """G: completions per prompt."""
    rollout_batch_size: int | None = Field(None, ge=1)
    """Prompts per rollout, over all ranks; none: ``train.batch_size``, so one update per rollout."""
    updates_epochs: int = Field(1, ge=1)
    """Passes over each rollout."""
    kl_coef: float = Field(0.001, ge=0)
    """Weight of the KL term to the reference; 0: no reference is kept."""
    kl_estimator: Literal["k1", "k2", "k3", "abs", "full"] = "k3"
    """Schulman's estimators, the absolute log-ratio (abs), or the exact divergence over the vocabulary (full)."""
    offload: bool = False
    """Keep the reference and learned reward models in CPU memory while they do not compute."""
    reference_sync: ReferenceSyncSettings | None = None
    """Let the reference follow the policy; none: it stays the stage's starting model."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    zero_signal: Literal["keep", "drop", "refill"] = "keep"
    """Groups whose rewards are all equal: keep them (their KL term still acts), drop them, or take further prompts."""
    skip_solved: SkipSolvedSettings | None = None
    """Skip prompts that are always or never solved, and log the reward by difficulty; none: all stay."""
    max_refills: int = Field(3, ge=1)
    """With refill: how many further rollouts are tried before the batch goes on smaller."""
    forward: Literal["auto", "grouped", "dense"] = "auto"
    """Compute each prompt once per group (grouped) or once per completion (dense); auto: where it pays and is right."""
    validate_on: ValidateSettings = ValidateSettings()
    """The look at the valid split."""
    samples_per_log: int = Field(4, ge=0)
    """How many rollouts are written to samples.jsonl at each log."""

    @field_validator("rewards")
    @classmethod
    def _rewards_add_up(cls, rewards: tuple[Settings, ...]) -> tuple[Settings, ...]:
        """Refuse weights that turn the reward round, or leave nothing of it."""
        added = [float(getattr(reward, "weight", 1.0)) for reward in rewards if not getattr(reward, "gate", False)]
        if not added:
            raise ValueError("every part is a gate, and gates multiply what other parts add up to; add one without")
        if sum(added) < 0 or not any(added):
            raise ValueError(
                f"the weights add up to {sum(added):g}, got {added}; give what you want more of a weight above 0"
            )
        return rewards

    @model_validator(mode="after")
    def _ranks_are_there(self) -> Self:
        names = [getattr(reward, "type", "") for reward in self.rewards]
        if "rank_discount" in names and getattr(self.rollout, "type", "beam") != "beam":
            raise ValueError(
                "rank_discount needs rollout.type beam (a sample has no rank); use prefix_match or change the rollout"
            )
        return self


class GRPOSettings(PolicySettings):
    """Group-relative policy optimization (Shao et al. 2024, arXiv 2402.03300) and its relatives."""

    type: Literal["grpo"] = "grpo"

    group_size: int = Field(16, ge=2)
    """G: completions per prompt."""
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "grpo"
    """How tokens are averaged, and what the ratio is of.

    grpo: mean per completion; dr_grpo: constant length (2503.20783); dapo: mean over all tokens (2503.14476);
    gspo: ratios of whole sequences (2507.18071); cispo: the clip limits a token's weight, never its gradient
    (2506.13585).
    """
    advantage_scale: Literal["group", "batch", "none"] = "group"
    """What the centered reward is divided by: the group's standard deviation, the batch's, or nothing."""
    advantage_baseline: Literal["mean", "leave_one_out"] = "mean"
    """What is subtracted: the group's mean, or the mean of the others."""
    kl_estimator: Literal["k1", "k3"] = "k3"
    """Schulman's estimators of the KL divergence, in the loss; k3 is GRPO's (arXiv 2402.03300, eq. 4)."""
    clip_low: float = Field(0.2, ge=0, le=1)
    """A probability ratio may fall to 1 - clip_low; .9 lets it fall to 1/10, 1 (published for cispo) to nothing."""
    clip_high: float = Field(0.2, ge=0, le=9)
    """A probability ratio may rise to 1 + clip_high; 9 lets it rise to 10."""
    add_ground_truth: bool = False
    """Replace the last completion of a group without a hit by the answer; with std-scaled advantages it hurt."""

    @model_validator(mode="after")
    def _reference_is_used(self) -> GRPOSettings:
        if self.reference_sync is not None and self.kl_coef == 0:
            raise ValueError("reference_sync does nothing where kl_coef is 0; set kl_coef or leave reference_sync out")
        return self

    @model_validator(mode="after")
    def _the_answer_can_be_added(self) -> GRPOSettings:
        if self.add_ground_truth and (
            getattr(self.rollout, "top_k", None) or getattr(self.rollout, "top_p", 1.0) < 1.0
        ):
            raise ValueError(
                "add_ground_truth does not go with top_k or top_p (the answer may lie outside of what they keep); "
                "drop one"
            )
        return self


def _default_rollout() -> Settings:
    from rlkit.config.rollouts import BeamSettings

    return BeamSettings()
