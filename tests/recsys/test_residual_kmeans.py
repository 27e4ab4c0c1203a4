"""Residual k-means: codes follow the vectors, and items that collide are told apart by distance."""

import numpy as np
import pytest

from rlkit.config.quantizers import ResidualKMeansSettings
from rlkit.errors import DataError
from rlkit.records import Source
from rlkit.recsys.data.catalog import Interaction, Item, RecommendationData
from rlkit.recsys.item_vectors import text_embeddings, transition_embeddings
from rlkit.recsys.quantizers.residual_kmeans import _to_free_codes, residual_kmeans, residual_kmeans_ids


def shop(titles: list[str], sequences: list[tuple[int, ...]]) -> RecommendationData:
    rows = tuple(
        Interaction(str(user), items[:end], items[end], Source("train"))
        for user, items in enumerate(sequences)
        for end in range(1, len(items))
    )
    items = tuple(Item(str(index), title) for index, title in enumerate(titles))
    return RecommendationData("shop", items, {"train": rows, "valid": (), "test": ()})


def test_every_item_gets_codes_of_its_own_and_the_same_seed_gives_the_same_ones():
    vectors = np.random.default_rng(0).normal(size=(200, 8))
    codes = residual_kmeans(vectors, levels=3, codebook_size=8, seed=1)
    assert codes.shape == (200, 3)
    assert codes.min() >= 0
    assert codes.max() < 8
    assert len(np.unique(codes, axis=0)) == 200
    assert (codes == residual_kmeans(vectors, levels=3, codebook_size=8, seed=1)).all()
    assert (codes != residual_kmeans(vectors, levels=3, codebook_size=8, seed=2)).any()


def test_the_first_level_is_the_clusters_and_later_levels_what_they_left_over():
    # two far clusters, each with the same three offsets: level 1 tells clusters apart, level 2 the offsets
    vectors = np.array([[cluster + offset, 0.0] for cluster in (0.0, 100.0) for offset in (-1.0, 0.0, 1.0)])
    codes = residual_kmeans(vectors, levels=2, codebook_size=3, seed=0)
    coarse = residual_kmeans(vectors, levels=2, codebook_size=2, seed=0)[:, 0]
    assert len(set(coarse[:3])) == len(set(coarse[3:])) == 1
    assert coarse[0] != coarse[3]
    assert len(np.unique(codes, axis=0)) == 6


def test_items_that_collide_are_assigned_the_nearest_free_codes_behind_their_prefix():
    # Items 0 and 1 share (0, 0). Behind prefix 0, code 2 is taken by item 2; free are 1 (at 1.0) and 3 (at 5.0).
    # Item 1 moves to code 1: .9^2 + 0 is less than 1^2 + .1^2. Prefix 1 is left alone.
    codes = np.array([[0, 0], [0, 0], [0, 2], [1, 1]])
    vectors, centers = np.array([[0.0], [0.1], [-0.5], [0.9]]), np.array([[0.0], [1.0], [-0.5], [5.0]])
    assert _to_free_codes(codes, vectors, centers).tolist() == [[0, 0], [0, 1], [0, 2], [1, 1]]


def test_items_that_find_no_free_code_get_one_more_level():
    # centers 0, 10.0005 and 20, all taken: the two items in the middle share theirs and are counted
    vectors = np.array([[0.0], [10.0], [10.001], [20.0]])
    codes = residual_kmeans(vectors, levels=1, codebook_size=3, seed=0)
    assert codes[:, 1].tolist() in ([-1, 0, 1, -1], [-1, 1, 0, -1])
    assert codes[1, 0] == codes[2, 0]
    assert residual_kmeans(vectors, levels=2, codebook_size=3, seed=0).shape == (4, 2)  # the residuals differ


def test_equal_vectors_get_different_codes():
    vectors = np.repeat(np.random.default_rng(0).normal(size=(5, 4)), 3, axis=0)
    codes = residual_kmeans(vectors, levels=2, codebook_size=16, seed=0)
    assert len(np.unique(codes, axis=0)) == 15
    for item in range(0, 15, 3):
        assert len(set(codes[item : item + 3, 0])) == 1  # what they share says what they are


def test_texts_about_the_same_thing_are_close_and_a_text_without_words_is_zero():
    vectors = text_embeddings(["red garden hose", "blue garden hose", "steel screw", "brass screw", " - "], 2, seed=0)
    near = vectors @ vectors.T
    assert min(near[0, 1], near[2, 3]) > 0.5 > near[:2, 2:4].max()
    assert not vectors[4].any()
    assert not text_embeddings(["", "?"], 4, seed=0).any()


def test_items_with_the_same_neighbors_are_close_and_unseen_ones_are_zero():
    vectors = transition_embeddings([(0, 4, 1), (1, 4, 0), (2, 5, 3), (3, 5, 2, 2)], 7, 4, seed=0)
    near = vectors @ vectors.T
    assert min(near[0, 1], near[2, 3]) > 0.5 > abs(near[:2, 2:4]).max()
    assert not vectors[6].any()
    assert not transition_embeddings([(2,), ()], 3, 4, seed=0).any()


def test_items_with_related_texts_share_their_first_token():
    titles = [f"{kind} {size}" for kind in ("garden hose", "steel screw", "paper cup") for size in "abcdefgh"]
    settings = ResidualKMeansSettings(levels=2, codebook_size=3, transition_dimensions=0)
    ids = residual_kmeans_ids(shop(titles, []), settings, seed=0)
    assert len(ids.distinct) == 24
    for start in (0, 8, 16):
        assert len({sid[0] for sid in ids.tokens[start : start + 8]}) == 1
    assert len({sid[0] for sid in ids.tokens}) == 3


def test_transitions_alone_can_make_semantic_ids():
    settings = ResidualKMeansSettings(levels=2, codebook_size=2)
    ids = residual_kmeans_ids(shop([""] * 6, [(0, 4, 1), (1, 4, 0), (2, 5, 3), (3, 5, 2)]), settings, seed=0)
    first = [sid[0] for sid in ids.tokens]
    assert first[0] == first[1] == first[4] != first[2] == first[3] == first[5]


def test_nothing_to_go_by_is_an_error():
    with pytest.raises(DataError, match="nothing to go by"):
        residual_kmeans_ids(shop(["", ""], []), ResidualKMeansSettings(), seed=0)
