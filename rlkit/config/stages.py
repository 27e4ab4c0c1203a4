"""Settings of the built-in stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rlkit.component import Settings, Slot
from rlkit.config.train import TrainSettings


class SemanticIdsStageSettings(Settings):
    """Make, or read, the semantic IDs of the catalog."""

    type: Literal["semantic_ids"] = "semantic_ids"
    produces: ClassVar[tuple[str, ...]] = ("semantic_ids",)


class TrainStageSettings(Settings):
    """Train a model with an algorithm, which says what it makes: a policy, or a reward model."""

    type: Literal["train"] = "train"
    references: ClassVar[Mapping[str, tuple[str, ...]]] = {"start_from": ("policy",)}

    algorithm: Annotated[Settings, Slot("algorithm")]
    """The algorithm."""
    train: TrainSettings = TrainSettings()
    """How it is optimized."""
    start_from: str | None = None
    """The stage whose model this one starts from; none: the last one before it, else the recipe's model."""
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None
    """Where this stage computes; none: where the engine says."""


class ChatEvaluationSettings(Settings):
    """What the evaluation of chat models measures beside exact matches; what has nothing to measure is left out."""

    domains: ClassVar[tuple[str, ...]] = ("chat",)
    references: ClassVar[Mapping[str, tuple[str, ...]]] = {"reference": ("policy",)}

    rewards: tuple[Annotated[Settings, Slot("reward")], ...] = ()
    """Rewards or judges that score the answers; each gives a mean and the win rate against the reference."""
    reference: str | None = None
    """The stage whose model KL and win rates are against; none: what the first evaluated policy with a reference
    started from, else the first model."""
    starting_model: bool | None = None
    """Evaluate the recipe's model as it was before any stage, too; none: where it is not a fresh preset."""
    samples: int = Field(1, ge=0)
    """Answers sampled per prompt beside the greedy one; KL is measured where they lead, so 0 leaves it out."""
    pass_at: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 4, 8, 16, 32, 64)
    """k of pass@k, of sampled answers that are right or wrong (exact match, rewards of nothing but 0 and 1), at most
    ``samples``; of the default those up to it, and none where that is 1."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits of those samples."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the likeliest tokens that hold this much of the probability in those samples."""
    bleu_tokenizer: Literal["auto", "13a", "zh", "intl", "char"] = "auto"
    """sacrebleu's tokenizer; auto: zh where a reference answer holds Chinese characters, else 13a."""
    forbidden: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Phrases that no answer should contain, whatever their case; a phrase ends where its last word does."""
    forbidden_file: str | None = Field(None, min_length=1)
    """A text file with more of them, one a line."""
    refusals: bool = False
    """Count answers that open with a usual phrase of refusal, in English or Chinese."""
    ability: bool = True
    """Measure the general-ability set that comes with rlkit: sentences to complete, by the likelihood of options."""
    ability_file: str | None = Field(None, min_length=1)
    """Another such set, JSONL of ``{"prompt", "options", "answer"}``; the answer is an option, or its index from 0."""

    @model_validator(mode="after")
    def _enough_is_sampled(self) -> ChatEvaluationSettings:
        most = max(self.pass_at, default=0)
        if most > self.samples and self.pass_at != type(self).model_fields["pass_at"].default:
            raise ValueError(
                f"pass_at: pass@{most} needs {most} samples per prompt, got samples {self.samples}; "
                "raise samples, or leave it out"
            )
        return self

    def files(self) -> tuple[str, ...]:
        """Return the files that are named."""
        return tuple(path for path in (self.ability_file, self.forbidden_file) if path)

    def check(self) -> None:
        """Read the files that are named here.

        Raises:
            DataError: every problem found, by file and line.
        """
        from rlkit.chat.evaluation_data import read_ability, read_phrases

        if self.ability_file:
            read_ability(self.ability_file)
        if self.forbidden_file:
            read_phrases(self.forbidden_file)


class EvaluateStageSettings(Settings):
    """Measure trained models, beside honest baselines, on a split."""

    type: Literal["evaluate"] = "evaluate"
    consumes: ClassVar[tuple[str, ...]] = ("policy",)
    produces: ClassVar[tuple[str, ...]] = ("evaluation",)
    references: ClassVar[Mapping[str, tuple[str, ...]]] = {"models": ("policy",)}

    models: tuple[str, ...] = ()
    """The stages whose models are evaluated, the last one being the result; none: every trained model of the recipe."""
    split: Literal["valid", "test"] = "test"
    """The rows that are ranked or answered."""
    num_beams: int = Field(50, ge=1)
    """How wide the beam is."""
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 3, 5, 10, 20, 50), min_length=1)
    """The cut-offs of HR@K and NDCG@K; those above ``num_beams`` are left out."""
    batch_size: int = Field(32, ge=1)
    """Prompts that are decoded together."""
    max_rows: int | None = Field(None, ge=1)
    """Take only the first rows of the split; none: all."""
    exclude_history: bool = False
    """Leave out items that the user already has."""
    baselines: bool = True
    """Fit popularity, transitions and item-kNN on train, choose on valid, and show them in the same table.
    Chat: the most frequent answer of train."""
    chat: ChatEvaluationSettings = ChatEvaluationSettings()
    """What is measured of chat models."""

    @model_validator(mode="after")
    def _some_k_is_listed(self) -> EvaluateStageSettings:
        if min(self.k) > self.num_beams:
            raise ValueError(
                f"num_beams {self.num_beams} is below every k, got {list(self.k)}; rank at least {min(self.k)}"
            )
        return self
