"""User sequences rebuilt from rows of (history, target)."""

from rlkit.records import Source
from rlkit.recsys.data.catalog import Interaction, user_sequences


def row(user: str, history: list[int], target: int) -> Interaction:
    return Interaction(user, tuple(history), target, Source("toy"))


def test_rows_of_several_users_join_into_one_sequence_each():
    rows = [row("a", [1], 2), row("b", [9], 8), row("a", [1, 2], 3), row("b", [9, 8], 8), row("b", [9, 8, 8], 7)]
    assert user_sequences(rows) == [("a", (1, 2, 3)), ("b", (9, 8, 8, 7))]


def test_a_history_cut_at_the_limit_continues_its_sequence():
    rows = [row("a", [1, 2], 3), row("a", [2, 3], 4), row("a", [3, 4], 5)]
    assert user_sequences(rows) == [("a", (1, 2, 3, 4, 5))]


def test_a_row_that_does_not_follow_starts_a_sequence_of_its_own():
    rows = [row("a", [1], 2), row("a", [1, 2, 3], 4), row("a", [1], 2)]
    assert user_sequences(rows) == [("a", (1, 2)), ("a", (1, 2, 3, 4)), ("a", (1, 2))]


def test_a_doubled_row_of_one_item_bought_twice_invents_no_third_event():
    rows = [row("a", [1], 1), row("a", [1], 1), row("b", [1, 2, 3], 4)]
    assert user_sequences(rows) == [("a", (1, 1)), ("a", (1, 1)), ("b", (1, 2, 3, 4))]


def test_every_row_is_the_last_transition_of_one_prefix():
    rows = [row("a", [1, 2, 3], 4), row("a", [2, 3, 4], 5), row("b", [7], 8), row("b", [7, 8], 7), row("a", [9], 1)]
    prefixes = [(user, items[:end]) for user, items in user_sequences(rows) for end in range(2, len(items) + 1)]
    for one in rows:
        assert any(
            user == one.user and items[-1] == one.target and items[:-1][-len(one.history) :] == one.history
            for user, items in prefixes
        )


def test_no_rows_give_no_sequences():
    assert user_sequences([]) == []
