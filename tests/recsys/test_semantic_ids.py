"""Semantic IDs: the table, its file, and how it is made."""

import json

import pytest

from rlkit.config.quantizers import GivenSettings, ResidualKMeansSettings
from rlkit.errors import DataError
from rlkit.recsys.data.catalog import Item, RecommendationData
from rlkit.recsys.semantic_ids import SemanticIds, make_semantic_ids

TOKENS = (("<a_10>", "<b_2>"), ("<a_9>",), ("<a_10>", "<b_2>"), ("<a_9>", "<b_2>", "<a_0>"))


def catalog(semantic_ids=None) -> RecommendationData:
    items = tuple(
        Item(str(i), f"{color} {thing}") for i, (color, thing) in enumerate([("red", "pen"), ("blue", "cup")])
    )
    return RecommendationData("shop", items, {"train": (), "valid": (), "test": ()}, semantic_ids)


def test_items_that_share_a_semantic_id_are_kept_together():
    ids = SemanticIds(TOKENS)
    assert ids.distinct == (("<a_10>", "<b_2>"), ("<a_9>",), ("<a_9>", "<b_2>", "<a_0>"))
    assert ids.sid_of_item.tolist() == [0, 1, 0, 2]
    assert ids.items_of_sid == [(0, 2), (1,), (3,)]
    assert ids.levels == 3


def test_the_vocabulary_is_ordered_by_level_and_by_number_not_by_text():
    assert SemanticIds(TOKENS).vocabulary() == ("<a_9>", "<a_10>", "<b_2>", "<a_0>")
    assert SemanticIds((("z",), ("red",))).vocabulary() == ("red", "z")


@pytest.mark.parametrize("tokens", [(), ((),), (("<a_1>", ""),), (tuple(f"<a_{i}>" for i in range(9)),)])
def test_a_table_without_one_to_eight_tokens_for_each_item_is_refused(tokens):
    with pytest.raises(DataError, match="semantic IDs:"):
        SemanticIds(tokens)


def test_a_file_gives_back_what_was_saved(tmp_path):
    ids = SemanticIds(TOKENS, "vocabulary", "residual_kmeans")
    ids.save(tmp_path / "semantic_ids.json")
    loaded = SemanticIds.load(tmp_path / "semantic_ids.json")
    assert loaded == ids
    assert loaded.fingerprint() == ids.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["semantic_ids.json"]


def test_the_fingerprint_sees_tokens_order_and_normalization():
    prints = {
        SemanticIds(TOKENS).fingerprint(),
        SemanticIds(TOKENS[::-1]).fingerprint(),
        SemanticIds(TOKENS).with_normalization("vocabulary").fingerprint(),
    }
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "not a file of semantic IDs, got format 'x'"),
        ({"normalization": "both"}, "normalization must be children or vocabulary, got 'both'"),
        ({"method": 3}, "method must be a text, got 3"),
        ({"tokens": [["<a_1>"], "<a_2>"]}, "tokens must be a list of lists of texts"),
        ({"tokens": [[]]}, "not 1 to 8 tokens"),
        ({"tokens": [["<a_1>"]]}, "the content was changed"),
    ],
)
def test_a_damaged_file_is_refused_by_path(tmp_path, change, message):
    path = tmp_path / "semantic_ids.json"
    SemanticIds(TOKENS).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message) as error:
        SemanticIds.load(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_missing_or_no_json_is_refused_by_path(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json: there is no such file"):
        SemanticIds.load(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text('{"format": ')
    with pytest.raises(DataError, match=r"broken\.json: not valid JSON"):
        SemanticIds.load(tmp_path / "broken.json")


def test_given_semantic_ids_are_taken_and_their_absence_is_an_error():
    given = (("<a_1>",), ("<a_2>",))
    assert make_semantic_ids(catalog(given), GivenSettings(), 0).tokens == given
    assert make_semantic_ids(catalog(given), None, 0).method == "given"
    with pytest.raises(DataError, match="shop: the data has no semantic IDs"):
        make_semantic_ids(catalog(), GivenSettings(), 0)


def test_without_settings_and_given_ones_they_are_made():
    ids = make_semantic_ids(catalog(), None, 0)
    assert ids.method == "residual_kmeans"
    assert len(set(ids.tokens)) == 2
    assert all(token.startswith(f"<{'abc'[level]}_") for sid in ids.tokens for level, token in enumerate(sid))
    assert make_semantic_ids(catalog(), ResidualKMeansSettings(levels=2), 0).levels == 2
