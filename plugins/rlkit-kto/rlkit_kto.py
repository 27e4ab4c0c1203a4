"""KTO, by TRL's trainer; ``apo_zero_unpaired`` is that of D'Oosterlinck et al. 2024, arXiv 2408.06266."""

from typing import ClassVar, Literal

from pydantic import Field

from rlkit.component import Component, Settings
from rlkit.errors import RecipeError
from rlkit.hookspecs import hookimpl


class KTOSettings(Settings):
    """KTO (Ethayarajh et al. 2024, arXiv 2402.01306): prospect theory's utility of liked and disliked answers."""

    type: Literal["kto"] = "kto"
    consumes: ClassVar[tuple[str, ...]] = ("Feedback",)
    produces: ClassVar[tuple[str, ...]] = ("policy",)
    training_arguments: ClassVar[tuple[str, ...]] = ("trl.trainer.kto_config:KTOConfig",)  # for train.extra
    said_here: ClassVar[dict[str, str]] = {"loss_type": "loss", "beta": "beta"}  # so not in train.extra

    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """kto: against the KL to the reference, estimated from mismatched answers; apo_zero_unpaired: without that."""
    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the reference."""
    desirable_weight: float = Field(1.0, gt=0)
    """Weight of liked answers; desirable weight x their number should be 1 to 1.33 times that of disliked ones."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Weight of disliked answers."""
    max_tokens: int = Field(1024, ge=8)
    """Prompt and answer together: a longer prompt loses its beginning, a longer answer its end."""


def kto(job):
    """Build the trainer of a KTO stage; trl is imported when a stage runs, not when rlkit lists what is installed."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    from rlkit.algorithms import offline
    from rlkit.models.load import make_trainable
    from rlkit.training import batch_plan

    class Collator(DataCollatorForUnpairedPreference):
        """Estimates the KL from each prompt with its neighbor's answer, of the micro-batch at hand."""

        def torch_call(self, examples):
            pairs = zip(examples, [examples[-1], *examples[:-1]])
            return super().torch_call([{**row, "KL_completion_ids": other["completion_ids"]} for row, other in pairs])

    settings, loaded = job.settings.algorithm, job.load_model()
    if settings.loss == "kto" and batch_plan(job.settings.train, job.processes).micro_batch_size < 2:
        raise RecipeError(f"stages.{job.stage}.train.micro_batch_size: kto compares neighbors, got 1; take 2 or more")
    rows = {}
    for split, name in (("train", "train_dataset"), ("valid", "eval_dataset")):
        found = job.domain.feedback(split)
        columns = offline.tokenized(found, loaded.tokenizer, ["completion"], settings.max_tokens)
        rows[name] = Dataset.from_dict({**columns, "label": [row.desirable for row in found]})
    steps = offline.optimizer_steps(job.settings.train, len(rows["train_dataset"]))
    own = settings.model_dump(include={"beta", "desirable_weight", "undesirable_weight"}) | {"loss_type": settings.loss}
    own |= offline.stage_arguments(job, steps, offline.best_checkpoint("loss"))
    size, held_out = max(own["per_device_eval_batch_size"], 2), len(rows["eval_dataset"])
    own["per_device_eval_batch_size"] = next((n for n in range(size, size + 9) if held_out % n != 1), size)  # neighbors
    trainer = type("FeedbackTrainer", (offline.OfflineTrainer, KTOTrainer), {})(
        ref_model=offline.frozen_reference(loaded, job),
        model=make_trainable(loaded, job.model),
        args=KTOConfig(**own),
        data_collator=Collator(loaded.tokenizer.pad_token_id, settings.max_tokens),
        **rows,
        processing_class=loaded.tokenizer,
        callbacks=offline.stage_callbacks(job),
    )
    trainer.args.train_sampling_strategy = "random"  # TRL pairs neighbors beforehand, which would need a fixed order
    return trainer


@hookimpl
def register_algorithms():
    """Return KTO."""
    return [Component(KTOSettings, kto)]
