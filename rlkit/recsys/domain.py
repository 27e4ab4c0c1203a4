"""The recommendation domain: files to records, semantic IDs to a constraint, rankings to metrics.

It is made in three steps, each needing the one before: from settings (data), with a SID table (``use``), and with a
tokenizer (``bind``: the trie and the prompts).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlkit.config.algorithms import ValidateSettings
from rlkit.config.domains import RecommendationSettings
from rlkit.errors import ModelError
from rlkit.job import Job
from rlkit.ops.ranking import metric_values
from rlkit.plugins import Registry
from rlkit.records import Demonstration, Prompt
from rlkit.recsys.data.catalog import Interaction, RecommendationData, user_sequences
from rlkit.recsys.metrics import sid_ranks
from rlkit.recsys.prompts import Template, render_history
from rlkit.recsys.recommend import rank
from rlkit.recsys.semantic_ids import SemanticIds
from rlkit.recsys.sequences import ItemTokens, TargetSequences, TrainSequences
from rlkit.recsys.teacher import Teacher, fit_counts
from rlkit.recsys.trie import Trie
from rlkit.run_directory import content_hash, write_atomically

logger = logging.getLogger("rlkit")

SEMANTIC_IDS_FILE = "semantic_ids.json"
PROMPT_FILE = "prompt.json"
"""Beside a model: the template that it was trained with."""


def recommendation_domain(settings: RecommendationSettings, job: Job) -> RecommendationDomain:
    """Build the domain of a run; ``template: auto`` follows the model that the recipe starts from."""
    path = getattr(job.recipe.model, "path", None)
    base = Path(path) if path else None
    template: Any = settings.template
    if template == "auto":
        known = base / PROMPT_FILE if base else None
        template = _read_template(known) if known and known.is_file() else "instruct" if base else "compact"
    return RecommendationDomain(settings, job.registry, job.seed, template, base, job.run.path)


def _read_template(path: Path) -> Template:
    """Return the template that a model was trained with.

    Raises:
        ModelError: the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}; set domain.template, or take a whole model") from error
    template: Any = content.get("template") if isinstance(content, dict) else None
    if template not in get_args(Template):
        raise ModelError(f"{path}: no template of rlkit, got {template!r}; set domain.template, or take a whole model")
    return template


class RecommendationDomain:
    """Everything that is known about one catalog and its users.

    Args:
        settings: the recipe's domain.
        registry: where data formats and quantizers are found.
        seed: of generated semantic IDs and of augmentation.
        template: how prompts look (``auto`` is resolved by the caller, who knows the model).
        base: the folder of the recipe's model; a SID table in it is used.
        run_dir: the run; a SID table that a stage of it made is used.
    """

    def __init__(
        self,
        settings: RecommendationSettings,
        registry: Registry,
        seed: int,
        template: Template,
        base: Path | None = None,
        run_dir: Path | None = None,
    ) -> None:
        self.settings, self.registry, self.seed, self.template = settings, registry, seed, template
        self.base, self.run_dir = base, run_dir
        self.semantic_ids: SemanticIds | None = None
        self.trie: Trie | None = None

    # ---- data and semantic IDs

    @cached_property
    def data(self) -> RecommendationData:
        """Read, or generate, the data."""
        component = self.registry.get("data_format", self.settings.data.type)  # type: ignore[attr-defined]
        return component.load()(self.settings.data)

    def make_semantic_ids(self) -> SemanticIds:
        """Read the given semantic IDs, or make them, as the settings say."""
        settings = self.settings.semantic_ids
        name = settings.type if settings else "given" if self.data.semantic_ids else "residual_kmeans"  # type: ignore[attr-defined]
        component = self.registry.get("quantizer", name)
        made = component.load()(self.data, settings or component.settings(), self.seed)
        return made.with_normalization(self.settings.normalization)

    def prepare(self, model: Path | None = None) -> None:
        """Take the SID table that belongs to a model: its own, its base's, the run's, else a new one."""
        made = [path.parent for path in self.run_dir.glob(f"*/{SEMANTIC_IDS_FILE}")] if self.run_dir else []
        for folder in [model, self.base, *made]:
            if folder is not None and (folder / SEMANTIC_IDS_FILE).is_file():
                return self.use(SemanticIds.load(folder / SEMANTIC_IDS_FILE))
        return self.use(self.make_semantic_ids())

    def use(self, semantic_ids: SemanticIds) -> None:
        """Take a SID table.

        Raises:
            ModelError: it was made for a catalog of another size or with other given semantic IDs, or normalizes over
                what may follow where the recipe asks for the vocabulary.
        """
        if len(semantic_ids.tokens) != len(self.data.items):
            raise ModelError(
                f"semantic IDs: made for {len(semantic_ids.tokens)} items, but the catalog has {len(self.data.items)}; "
                "use the data that the model was trained on"
            )
        given = self.data.semantic_ids
        if semantic_ids.method == "given" and given is not None and tuple(semantic_ids.tokens) != tuple(given):
            item = next(item for item, pair in enumerate(zip(semantic_ids.tokens, given)) if pair[0] != pair[1])
            raise ModelError(
                f"semantic IDs: item {self.data.items[item].key!r} is {''.join(given[item])!r} in the data, but got "
                f"{''.join(semantic_ids.tokens[item])!r} beside the model; use the data that the model was trained on"
            )
        if (semantic_ids.normalization, self.settings.normalization) == ("children", "vocabulary"):
            raise ModelError(
                f"domain.normalization: the model's {SEMANTIC_IDS_FILE} says 'children', got 'vocabulary'; leave "
                "it out, or start from another model"
            )
        self.semantic_ids = semantic_ids

    @property
    def ids(self) -> SemanticIds:
        """Return the SID table in use."""
        assert self.semantic_ids is not None, "use() comes before this"
        return self.semantic_ids

    @property
    def new_tokens(self) -> list[str]:
        """Return the tokens that a tokenizer must hold."""
        return list(self.ids.vocabulary())

    @property
    def normalization(self) -> Any:
        """Return how log-probs are normalized, as the SID table records it."""
        return self.ids.normalization

    # ---- tokenizer and constraint

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Build the trie for a tokenizer; prompts can be rendered from here on.

        Raises:
            ModelError: a SID token is not exactly one token of the tokenizer.
        """
        self.tokenizer = tokenizer
        self.trie = Trie.from_semantic_ids(self.ids, tokenizer)
        self.sid_texts = ["".join(tokens) for tokens in self.ids.distinct]
        self.begin = tokenizer.bos_token or ""

    @property
    def constraint(self) -> Trie:
        """Return the tree of valid completions."""
        assert self.trie is not None, "bind() comes before this"
        return self.trie

    def sid(self, item: int) -> str:
        """Return an item's semantic ID as text."""
        return self.sid_texts[self.ids.sid_of_item[item]]

    # ---- records

    def prompt(self, row: Interaction, key: str, task: str = "sid_history_to_sid") -> Prompt:
        """Render one event; the target goes into ``answer`` and nowhere else."""
        history = row.history[-self.settings.max_history :]
        text = render_history(self.template, [self.sid(item) for item in history], self.begin)
        return Prompt(key=key, text=text, answer=self.sid(row.target), source=row.source, task=task, context=row)

    def prompts(self, split: str, limit: int | None = None) -> list[Prompt]:
        """Render a split in its order; ``limit`` takes a seeded sample of that size, still in order."""
        rows = self.data.splits[split]
        chosen: Sequence[int] = range(len(rows))
        if limit is not None and limit < len(rows):
            chosen = sorted(np.random.default_rng(self.seed).choice(len(rows), limit, replace=False).tolist())
        return [self.prompt(rows[index], f"{split}-{index}") for index in chosen]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the events to predict by split, and the items of the catalog."""
        events = {split: len(rows) for split, rows in self.data.splits.items()}
        return {"interactions": events, "catalog": {"items": len(self.data.items)}}

    def demonstrations(self, split: str) -> list[Demonstration]:
        """Render a split for the instruct template, each task by its weight."""
        prompts = self.prompts(split)
        result = []
        for task in self.settings.tasks:
            whole, share = divmod(task.weight, 1)
            chosen = np.random.default_rng(self.seed).random(len(prompts)) < share
            for prompt, extra in zip(prompts, chosen):
                copies = int(whole) + int(extra)
                result += [Demonstration(prompt.text, prompt.answer, prompt.source, task.name)] * copies
        return result

    def train_sequences(self) -> TrainSequences | None:
        """Return whole user sequences for the compact template; None: the template has none."""
        if ignored := self.settings.ignored(self.template):
            logger.warning("domain: the %s template ignores %s", self.template, " and ".join(ignored))
        if self.template != "compact":
            return None
        sequences = [items for _, items in user_sequences(self.data.splits["train"])]
        return TrainSequences(
            sequences,
            self.item_tokens,
            self.settings.augment,
            window=self.settings.window,
            seed=self.seed,
            teacher=self._teacher(),
            sid_of_item=self.ids.sid_of_item,
        )

    def _teacher(self) -> Teacher | None:
        """Fit the counting teacher, if it is asked for.

        Raises:
            ModelError: the SID table says that log-probs are normalized over the vocabulary.
        """
        augment = self.settings.augment
        if not augment.teacher:
            return None
        if self.normalization != "children":
            raise ModelError(
                f"domain.augment.teacher: the model's {SEMANTIC_IDS_FILE} normalizes over another set than what may "
                f"follow, got {self.normalization!r}; set the teacher to 0, or start from another model"
            )
        return Teacher(fit_counts(self.data, self.ids.sid_of_item), self.constraint, augment.teacher_power)

    @property
    def teacher_weight(self) -> float:
        """Return what soft targets weigh beside the true ones."""
        return self.settings.augment.teacher

    def valid_sequences(self) -> TargetSequences:
        """Return the valid rows, with the loss on the target alone."""
        rows = [(row.history[-self.settings.max_history :], row.target) for row in self.data.splits["valid"]]
        return TargetSequences(rows, self.item_tokens)

    @cached_property
    def item_tokens(self) -> ItemTokens:
        """Return the token ids and trie nodes of every item."""
        tokens = self.sid_token_ids
        nodes = self.constraint.walk(tokens)[:, :-1]
        lengths = self.sid_lengths
        sids = self.ids.sid_of_item
        begin = self.tokenizer(self.begin, add_special_tokens=False).input_ids if self.begin else []
        return ItemTokens(
            [tokens[sid, : lengths[sid]].tolist() for sid in sids],
            [nodes[sid, : lengths[sid]].tolist() for sid in sids],
            begin,
        )

    @cached_property
    def sid_lengths(self) -> np.ndarray:
        """Return (S,) the number of tokens of each distinct completion."""
        return np.asarray([len(row) for row in self._completions])

    @cached_property
    def sid_token_ids(self) -> Tensor:
        """Return (S, C) the tokens of each distinct completion, padded with 0."""
        width = max(len(row) for row in self._completions)
        return torch.tensor([row + [0] * (width - len(row)) for row in self._completions])

    @cached_property
    def _completions(self) -> list[list[int]]:
        end = [] if self.constraint.end_token is None else [self.constraint.end_token]
        convert = self.tokenizer.convert_tokens_to_ids
        return [convert(list(tokens)) + end for tokens in self.ids.distinct]

    # ---- filters and files

    def alive(self, prompts: Sequence[Prompt], exclude_history: bool) -> Tensor | None:
        """Return which trie nodes each prompt may use, (B, nodes), or None where all may be used."""
        if not exclude_history:
            return None
        sids = self.ids.sid_of_item
        banned = [sorted({int(sids[item]) for item in prompt.context.history}) for prompt in prompts]
        return self.constraint.allowed_nodes(len(prompts), banned=banned, allowed=None)

    def save(self, folder: Path) -> None:
        """Write what a model of this domain needs beside it."""
        self.ids.save(folder / SEMANTIC_IDS_FILE)
        write_atomically(folder / PROMPT_FILE, json.dumps({"template": self.template}) + "\n")

    def fingerprint(self) -> dict[str, str]:
        """Return hashes that a model of this domain depends on, for the manifest."""
        return {"semantic_ids": self.ids.fingerprint()}

    def inputs(self) -> list[str]:
        """Return hashes of the data files, for "finished before"."""
        tables = [self.base / SEMANTIC_IDS_FILE] if self.base else []
        files = [*map(Path, self.data.files), *tables]
        return [content_hash(path) for path in files if path.is_file()]

    # ---- measuring

    def validate(
        self,
        lm: Any,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        settings: ValidateSettings,
        device: Any,
    ) -> dict[str, np.ndarray]:
        """Return HR@10 and NDCG@10 of each prompt, ranked with evaluation beams."""
        if not prompts:
            return {f"{name}@10": np.zeros(0) for name in ("hit_rate", "ndcg")}
        beams = min(settings.num_beams, len(self.ids.distinct))
        ranking = rank(lm, tokenizer, self, prompts, num_beams=beams, batch_size=64, device=device)
        targets = np.asarray([self.ids.sid_of_item[prompt.context.target] for prompt in prompts])
        return metric_values(sid_ranks(ranking.sids, targets), (10,))

    def evaluate(self, job: Job) -> dict[str, Any]:
        """Rank a split with the trained models, beside the baselines."""
        from rlkit.recsys.stage import evaluate

        return evaluate(job, self)
