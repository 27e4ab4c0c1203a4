"""How a prompt and its completions share a row."""

import torch

from rlkit.policy.completion_states import visible_keys


def test_a_row_shows_each_token_its_prompt_and_its_own_completion() -> None:
    # positions: padding, p, p | a a | b b
    visible = visible_keys(torch.tensor([[False, True, True]]), group_size=2, tokens=2)
    assert visible[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],  # padding sees itself, or attention over nothing is NaN
        [0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 1, 0],
        [0, 1, 1, 0, 0, 1, 1],
    ]


def test_rows_of_single_tokens_hold_the_prompt_only() -> None:
    visible = visible_keys(torch.ones(1, 3, dtype=torch.bool), group_size=4, tokens=0)
    assert visible[0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
