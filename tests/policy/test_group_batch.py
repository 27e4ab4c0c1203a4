"""One prompt, G completions."""

import pytest
import torch

from rlkit.policy.group_batch import GroupBatch, concat


def example() -> GroupBatch:
    """Return three groups of two; the second completion of group 1 is absent."""
    prompts = torch.tensor([[0, 0, 5, 6], [0, 7, 8, 9], [0, 0, 0, 4]])
    mask = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [0, 0, 0]], [[1, 0, 0], [1, 0, 0]]])
    tokens = torch.arange(10, 28).view(3, 2, 3)
    numbers = {"advantages": torch.arange(6.0).view(3, 2), "old_logprobs": -tokens.float() * mask}
    kept = torch.stack([tokens, tokens + 1], -1)
    return GroupBatch(prompts, prompts > 0, tokens * mask, mask, numbers, kept)


def assert_same(batch: GroupBatch, other: GroupBatch) -> None:
    assert batch.prompts.tolist() == other.prompts.tolist()
    assert batch.prompt_mask.tolist() == other.prompt_mask.tolist()
    assert batch.completions.tolist() == other.completions.tolist()
    assert batch.mask.tolist() == other.mask.tolist()
    assert {name: value.tolist() for name, value in batch.numbers.items()} == {
        name: value.tolist() for name, value in other.numbers.items()
    }
    assert batch.kept is not None
    assert other.kept is not None
    assert batch.kept.tolist() == other.kept.tolist()


def test_counts_leave_out_padding_and_absent_completions() -> None:
    batch = example()
    assert len(batch) == 3
    assert batch.num_tokens.item() == 8
    assert batch.num_completions.item() == 5


def test_selected_groups_come_in_order_without_common_padding() -> None:
    part = example().select([2, 0])
    assert part.prompts.tolist() == [[0, 4], [5, 6]]
    assert part.prompt_mask.tolist() == [[False, True], [True, True]]
    assert part.completions.tolist() == [[[22, 0], [25, 0]], [[10, 11], [13, 0]]]
    assert part.mask.tolist() == [[[True, False], [True, False]], [[True, True], [True, False]]]
    assert part.numbers["advantages"].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert part.numbers["old_logprobs"].tolist() == [[[-22.0, 0.0], [-25.0, 0.0]], [[-10.0, -11.0], [-13.0, 0.0]]]
    assert part.kept is not None
    assert part.kept.shape == (2, 2, 2, 2)


def test_a_group_without_completions_keeps_one_column() -> None:
    batch = example()
    batch.mask[2] = False
    assert batch.select([2]).completions.shape == (1, 2, 1)


def test_parts_put_together_are_the_whole() -> None:
    batch = example()
    parts = batch.split([1, 2])
    assert [len(part) for part in parts] == [1, 2]
    assert parts[0].completions.shape == (1, 2, 2)
    whole = batch.select(range(3))  # trims the column that is padding for all
    # kept tokens of trimmed columns come back as padding
    whole.kept = torch.where(torch.tensor([2, 3, 3])[:, None, None, None] > torch.arange(3)[:, None], whole.kept, -1)
    assert_same(concat(parts), whole)


def test_kept_tokens_are_padded_with_minus_one() -> None:
    narrow, wide = example(), example()
    assert narrow.kept is not None
    narrow.kept = narrow.kept[..., :1]
    kept = concat([narrow, wide]).kept
    assert kept is not None
    assert kept[0, 0, 0].tolist() == [10, -1]
    assert kept[3, 0, 0].tolist() == [10, 11]


def test_moving_keeps_everything() -> None:
    assert_same(example().to("cpu"), example())
    moved = example().to("meta")
    assert moved.kept is not None
    assert {moved.prompts.device.type, moved.numbers["advantages"].device.type, moved.kept.device.type} == {"meta"}


def test_shapes_that_do_not_fit_are_refused() -> None:
    batch = example()
    with pytest.raises(AssertionError):
        GroupBatch(batch.prompts, batch.prompt_mask, batch.completions, batch.mask, {"advantages": torch.zeros(3)})
    with pytest.raises(AssertionError):
        batch.split([1, 1])
