"""What is said about a dataset, on rows counted by hand and on the figures of the real data's README."""

import math
import os
from pathlib import Path

import pytest

from rlkit.config.recommendation_data import DemoDataSettings, MiniOneRecDataSettings
from rlkit.records import Source
from rlkit.recsys.data.catalog import Interaction, Item, RecommendationData
from rlkit.recsys.data.demo import generate_demo
from rlkit.recsys.data.describe import describe, description_rows
from rlkit.recsys.data.minionerec import read_minionerec

INDUSTRIAL = Path(os.environ.get("RLKIT_DATA", Path(__file__).parents[2] / "../shared/data")) / "amazon_industrial"


def rows(*events: tuple[str, list[int], int]) -> tuple[Interaction, ...]:
    return tuple(Interaction(user, tuple(history), target, Source("toy")) for user, history, target in events)


TOY = RecommendationData(
    name="toy",
    items=tuple(Item(str(i), title) for i, title in enumerate(["x", "x", "y", "z", "w"])),
    splits={
        "train": rows(("a", [0], 1), ("a", [0, 1], 1), ("b", [2], 0), ("b", [2], 0)),
        "valid": rows(("a", [0, 1, 1], 3), ("c", [2], 2)),
        "test": rows(("c", [1, 2], 1), ("c", [2], 2), ("b", [2, 0], 4)),
    },
)
SIDS = [("<a_1>", "<b_1>"), ("<a_1>", "<b_1>"), ("<a_2>",), ("<a_2>", "<b_1>"), ("<a_2>", "<b_2>")]


def test_splits_are_counted_row_by_row():
    described = describe(TOY, SIDS)
    train, valid, test = (described.splits[name] for name in ("train", "valid", "test"))
    assert (train.rows, train.users, train.targets, train.cold, train.doubles) == (4, 2, 2, 0, 1)
    assert (train.repeats, train.repeats_of_last, train.new_users) == (1, 1, 0)  # a buys 1 after [0, 1]
    assert (valid.cold, valid.repeats_of_last, valid.new_users) == (1, 1, 1)  # 3 is cold; c buys 2 after 2
    assert (test.cold, test.repeats, test.repeats_of_last, test.new_users) == (1, 2, 1, 2)
    assert (train.ambiguous, valid.ambiguous, test.ambiguous) == (4, 0, 1)  # items 0 and 1 share theirs
    assert train.history_lengths == (0, 3, 1)
    assert test.mean_history == pytest.approx(5 / 3)
    assert described.common_rows == {("train", "valid"): 0, ("train", "test"): 0, ("valid", "test"): 1}


def test_the_most_frequent_items_are_counted_over_events_not_over_histories():
    # events: a 0 1 1, b 2 0 and the doubled row's 0; ten items cover them all
    assert describe(TOY, None).top10_share == 1.0
    many = tuple(Interaction(f"u{i}", (i,), 99, Source("toy")) for i in range(20))
    data = RecommendationData("many", (), {"train": many})
    assert describe(data, None).top10_share == pytest.approx(29 / 40)  # 99 twenty times and nine items once


def test_semantic_ids_are_counted_by_level():
    ids = describe(TOY, SIDS).semantic_ids
    assert ids is not None
    assert (ids.distinct, ids.shared, ids.ambiguous_items) == (4, 1, 2)
    assert ids.items_by_levels == (0, 1, 4)
    assert ids.codes == (2, 2)
    # level 1: shares 2/5 and 3/5; level 2, of the four items that have it: 3/4 and 1/4
    entropies = [-sum(share * math.log(share) for share in shares) for shares in ((0.4, 0.6), (0.75, 0.25))]
    assert ids.perplexities == pytest.approx([math.exp(entropy) for entropy in entropies])


def test_without_semantic_ids_nothing_is_said_about_them():
    described = describe(TOY, None)
    assert described.semantic_ids is None
    assert described.splits["test"].ambiguous is None
    assert not any("semantic" in row[0] for row in description_rows(described))


def test_the_table_is_rectangular_and_shows_counts_with_shares():
    table = description_rows(describe(TOY, SIDS))
    assert {len(row) for row in table} == {4}
    assert table[0] == ("", "train", "valid", "test")
    assert ("cold targets", "0 (0.0%)", "1 (50.0%)", "1 (33.3%)") in table
    assert ("history of 3", "0 (0.0%)", "1 (50.0%)", "0 (0.0%)") in table
    assert ("shared semantic IDs", "1, by 2 items", "", "") in table


@pytest.mark.skipif(not INDUSTRIAL.is_dir(), reason=f"no real data at {INDUSTRIAL}")
def test_the_real_data_has_the_figures_of_its_readme():
    data = read_minionerec(MiniOneRecDataSettings(path=str(INDUSTRIAL)))
    described = describe(data, data.semantic_ids)
    train, valid, test = (described.splits[name] for name in ("train", "valid", "test"))
    assert (train.users, valid.users, test.users) == (7034, 2011, 1987)
    assert [round(100 * split.cold / split.rows, 1) for split in (valid, test)] == [2.8, 3.2]
    assert [round(100 * split.repeats / split.rows, 1) for split in (train, valid, test)] == [9.0, 5.2, 2.8]
    assert [round(100 * split.repeats_of_last / split.rows, 1) for split in (valid, test)] == [4.5, 2.7]
    assert round(100 * test.new_users / test.rows, 1) == 40.0
    assert (train.doubles, valid.doubles, test.doubles) == (3, 0, 0)
    assert round(test.mean_history, 2) == 4.96
    assert round(test.history_lengths[10] / test.rows, 3) == 0.105
    assert set(described.common_rows.values()) == {0}
    assert round(100 * described.top10_share, 1) == 6.8
    assert described.shared_titles == 55
    ids = described.semantic_ids
    assert ids is not None
    assert (ids.distinct, ids.shared, ids.ambiguous_items, ids.codes) == (3670, 15, 31, (48, 256, 256))
    assert (test.ambiguous, round(317 / test.rows, 3)) == (317, 0.07)
    assert [round(perplexity) for perplexity in ids.perplexities] == [41, 242, 226]  # minionerec.md, section 3.7


def test_the_demo_resembles_the_real_data_where_its_docstring_says_so():
    test = describe(generate_demo(DemoDataSettings()), None).splits["test"]
    assert round(test.repeats_of_last / test.rows, 3) == 0.022
    assert round(test.repeats / test.rows, 3) == 0.056
    assert round(test.new_users / test.rows, 2) == 0.39
    assert test.cold == 0
