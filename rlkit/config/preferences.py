"""Settings of learning from preferences without rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rlkit.component import Settings
from rlkit.config.algorithms import ReferenceSyncSettings

PreferenceLoss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
]
# Losses that read ``label_smoothing``.
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
# Losses of the difference between chosen and rejected, in which a reference may be left out.
RELATIVE = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "aot", "discopop", "sft")


class DPOSettings(Settings):
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290) and its relatives, by TRL's trainer."""

    type: Literal["dpo"] = "dpo"
    consumes: ClassVar[tuple[str, ...]] = ("Preference",)
    produces: ClassVar[tuple[str, ...]] = ("policy",)
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference")
    training_arguments: ClassVar[tuple[str, ...]] = (
        "trl.trainer.base_config:_BaseConfig",
        "trl.trainer.dpo_config:DPOConfig",
    )
    # Fields of ``training_arguments`` that these settings say, so that ``train.extra`` may not.
    said_here: ClassVar[Mapping[str, str]] = {
        "loss_type": "loss",
        "loss_weights": "loss",
        "beta": "beta",
        "label_smoothing": "label_smoothing",
        "precompute_ref_log_probs": "precompute_reference",
        "sync_ref_model": "reference_sync",
        "ref_model_mixup_alpha": "reference_sync.mix",
        "ref_model_sync_steps": "reference_sync.every_steps",
    }

    loss: PreferenceLoss | dict[PreferenceLoss, Annotated[float, Field(gt=0)]] = "sigmoid"
    """A loss by TRL's name, or several with their weights: ``{sigmoid: 0.8, bco_pair: 0.2}``.

    sigmoid: DPO; sigmoid_norm: DPO of mean log-probs; hinge: SLiC (2305.10425); ipo (2310.12036); robust (2403.00409);
    exo_pair (2402.00856); nca_pair (2402.05369); bco_pair (2404.04656); sppo_hard (2405.00675); aot, aot_unpaired
    (2406.05882); apo_zero, apo_down (2408.06266); discopop (2406.08414); sft: likelihood of the chosen completion.
    """
    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the reference; ipo: its regularization, tau."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """robust, aot: the probability that a label is flipped; exo_pair (needs it above 0): its epsilon, 0.001."""
    reference_free: bool = False
    """Compare log-probs themselves, as if every completion were as likely under the reference."""
    precompute_reference: bool = False
    """Compute the reference's log-probs once, before training: no reference stays in memory."""
    reference_sync: ReferenceSyncSettings | None = None
    """Let the reference follow the policy (TR-DPO); none: it stays the stage's starting model."""
    sft_weight: float = Field(0.0, ge=0)
    """Adds this times the negative log-likelihood per token of the chosen completions (RPO, arXiv 2404.19733)."""
    max_tokens: int = Field(1024, ge=8)
    """Prompt and completion together: a longer prompt loses its beginning, a longer completion its end."""
    select_by: Literal["loss", "accuracy", "margin", "last"] = "loss"
    """What chooses the best checkpoint on valid: the loss, how often chosen beats rejected, or by how much; or none."""

    @property
    def losses(self) -> dict[str, float]:
        """Return every loss with its weight, the SFT term among them."""
        named = {self.loss: 1.0} if isinstance(self.loss, str) else self.loss
        weights = {str(name): weight for name, weight in named.items()}
        return weights | ({"sft": self.sft_weight} if self.sft_weight else {})

    @model_validator(mode="after")
    def _losses_fit(self) -> DPOSettings:
        names = [self.loss] if isinstance(self.loss, str) else list(self.loss)
        if not names:
            raise ValueError("loss names none, got {}; name one of TRL's losses, such as sigmoid")
        if self.sft_weight and "sft" in names:
            raise ValueError("sft_weight and the loss sft say the same thing; keep one of them")
        if self.label_smoothing and not set(names) & set(SMOOTHED):
            raise ValueError(f"label_smoothing does nothing with {', '.join(names)}; use one of {', '.join(SMOOTHED)}")
        if "exo_pair" in names and not self.label_smoothing:
            raise ValueError("the loss exo_pair needs label_smoothing above 0; its paper recommends 0.001")
        return self

    @model_validator(mode="after")
    def _one_reference(self) -> DPOSettings:
        chosen = [name for name in ("reference_free", "precompute_reference", "reference_sync") if getattr(self, name)]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} do not go together: there is one reference, or none; keep one")
        if self.reference_sync and self.select_by != "last":
            raise ValueError(
                f"select_by {self.select_by} compares figures against a reference that moves; "
                "with reference_sync write select_by last"
            )
        absolute = sorted(self.losses.keys() - set(RELATIVE))
        if self.reference_free and absolute:
            raise ValueError(
                f"reference_free does not go with {', '.join(absolute)}, which compare each completion with the "
                f"reference; use {', '.join(RELATIVE)}"
            )
        return self
