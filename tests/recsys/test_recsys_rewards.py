"""Rewards of the recommendation domain, by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toys import tiny_job, tiny_recipe

from rlkit.config.rewards import AttributeMatchSettings
from rlkit.errors import RecipeError
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.rollouts import Rollouts
from rlkit.records import Prompt, Source
from rlkit.recsys.rewards import attribute_match, item_match, prefix_match, rank_discount
from rlkit.recsys.trie import Trie

# Items 0 and 3 share a semantic ID. Token ids: level 1 in {5, 6}, level 2 in {7, 8}.
SIDS = [[5, 7], [5, 8], [6, 7]]
SID_OF_ITEM = [0, 1, 2, 0]


@pytest.fixture
def domain() -> SimpleNamespace:
    ids = SimpleNamespace(sid_of_item=SID_OF_ITEM, items_of_sid=[(0, 3), (1,), (2,)])
    items = [
        SimpleNamespace(category=c, brand="", title=t) for c, t in zip("xxyy", ("red tent", "rope", "red hat", "hat"))
    ]
    return SimpleNamespace(constraint=Trie.build(SIDS, end_token=None), ids=ids, data=SimpleNamespace(items=items))


@pytest.fixture
def rollouts(domain: SimpleNamespace) -> Rollouts:
    """Two prompts with targets 3 and 2; the beams 1, 0, 2 and 0, 1 (and one that is absent)."""
    completions = torch.tensor([[SIDS[1], SIDS[0], SIDS[2]], [SIDS[0], SIDS[1], [0, 0]]])
    mask = torch.ones(2, 3, 2, dtype=torch.bool)
    mask[1, 2] = False
    leaves = domain.constraint.walk(completions[mask.any(-1)])[:, -1]
    all_leaves = torch.full((2, 3), -1)
    all_leaves[mask.any(-1)] = leaves
    prompts = [
        Prompt(str(i), "", "", Source("x", i), context=SimpleNamespace(target=target))
        for i, target in enumerate((3, 2))
    ]
    answers = torch.tensor([SIDS[0], SIDS[2]])
    batch = GroupBatch(torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1), completions, mask)
    truncated, scores = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3)
    return Rollouts(prompts, batch, scores, all_leaves, truncated, answers, torch.ones(2, 2, dtype=torch.bool))


def test_the_target_is_compared_by_semantic_id_and_comes_from_the_record(domain, rollouts) -> None:
    # Target 3 shares its ID with item 0, the second beam of the first group; target 2 is in no beam of the second.
    assert item_match(None, domain)(rollouts).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_two_users_with_the_same_history_keep_their_own_targets(domain, rollouts) -> None:
    rollouts.prompts[0].context.target = 1
    assert item_match(None, domain)(rollouts)[0].tolist() == [1, 0, 0]


def test_a_miss_costs_more_the_higher_it_stands_and_nothing_in_a_group_without_a_hit(domain, rollouts) -> None:
    # S = 1 + 1/log2(3) + 1/2 = 2.1309; the first beam costs 1/S = .4693, the third (1/2)/S = .2346.
    penalty = rank_discount(None, domain)(rollouts)
    assert penalty[0].tolist() == pytest.approx([-0.46928, 0, -0.23464], abs=1e-5)
    assert penalty[1].tolist() == [0, 0, 0]


def test_prefixes_are_graded_by_level(domain, rollouts) -> None:
    # Target <5 7>: <5 8> has one level of two, <5 7> both, <6 7> none (later matches do not count). Target <6 7>: none.
    assert prefix_match(None, domain)(rollouts).tolist() == [[0.5, 1, 0], [0, 0, 0]]


def test_an_attribute_is_rewarded_by_the_share_of_the_ids_items_that_have_it(domain, rollouts) -> None:
    # ID 0 stands for items 0 (x) and 3 (y); ID 1 for an x; ID 2 for a y.
    assert attribute_match(AttributeMatchSettings(value="X"), domain)(rollouts).tolist() == [[1, 0.5, 0], [0.5, 1, 0]]
    word = AttributeMatchSettings(attribute="title", value="red")
    assert attribute_match(word, domain)(rollouts)[0].tolist() == [0, 0.5, 1]


def test_an_attribute_that_no_item_has_is_refused(domain) -> None:
    with pytest.raises(RecipeError, match="no item has category 'z'; some that exist: x, y"):
        attribute_match(AttributeMatchSettings(value="z"), domain)


def test_an_added_answer_is_rewarded_and_valid(tmp_path: Path) -> None:
    from rlkit.algorithms.grpo import grpo

    tree = tiny_recipe()
    tree["stages"]["grpo"]["algorithm"] = {
        **tree["stages"]["grpo"]["algorithm"], "add_ground_truth": True, "rewards": [{"type": "item_match"}],
    }  # fmt: skip
    trainer = grpo(tiny_job(tmp_path, "grpo", tree))
    rollouts = trainer.collector.collect(trainer.model.eval().lm, 0, 0, 8).rollouts
    assert (rollouts.rewards.sum(-1) == 1).all()
    trainer.args.eval_on_start = False
    trainer.train()
