"""The trie against plain Python sets of prefixes."""

import json
import time

import numpy as np
import pytest
import torch
from toys import data_folder, tiny_model

from rlkit.errors import DeadPrefixError, ModelError
from rlkit.recsys.semantic_ids import SemanticIds
from rlkit.recsys.trie import Trie

RAGGED = [[5, 6], [5, 7, 8], [1], [5, 7, 9], [5, 6]]


def random_sequences(seed: int, ragged: bool) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, 300) if ragged else np.full(300, 4)
    return [rng.integers(0, 4, length).tolist() for length in lengths]


def completions(trie: Trie, sequences: list[list[int]]) -> list[tuple[int, ...]]:
    end = [] if trie.end_token is None else [trie.end_token]
    return [tuple([*sequence, *end]) for sequence in sequences]


def all_paths(trie: Trie) -> dict[tuple[int, ...], int]:
    """Every prefix with its node, by asking for one node's children at a time."""
    found, queue = {}, [((), 0)]
    while queue:
        prefix, node = queue.pop()
        found[prefix] = node
        children = trie.children(torch.tensor(node), len(prefix))
        for token, child, exists in zip(*(part.tolist() for part in children)):
            if exists:
                queue.append(((*prefix, token), child))
    return found


def test_nodes_are_numbered_breadth_first_and_the_child_of_edge_e_is_node_e_plus_1():
    # depth 1: 1 -> node 1, 5 -> node 2; depth 2: 5 6 -> 3, 5 7 -> 4; depth 3: 5 7 8 -> 5, 5 7 9 -> 6
    trie = Trie.build(RAGGED, end_token=None)
    assert trie.offsets.tolist() == [0, 2, 2, 4, 4, 6, 6, 6]
    assert trie.tokens[:6].tolist() == [1, 5, 6, 7, 8, 9]
    assert trie.leaves.tolist() == [3, 5, 1, 6, 3]
    assert trie.sequences.tolist() == [-1, 2, -1, 0, -1, 1, 3]
    assert trie.leaf_counts.tolist() == [4, 1, 3, 1, 2, 1, 1]
    assert trie.widths == (2, 2, 2)
    assert trie.max_tokens == 3
    assert trie.end_token is None


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_tree_holds_exactly_the_prefixes_of_its_sequences(ragged, seed):
    sequences = random_sequences(seed, ragged)
    trie = Trie.build(np.array(sequences) if not ragged else sequences, end_token=9)
    whole = completions(trie, sequences)
    assert (trie.end_token is not None) == ragged
    paths = all_paths(trie)
    assert set(paths) == {row[:length] for row in whole for length in range(len(row) + 1)}
    assert sorted(paths.values()) == list(range(trie.num_nodes))
    leaves = torch.tensor([paths[row] for row in whole])
    assert trie.leaves.tolist() == leaves.tolist()
    assert trie.is_leaf(torch.arange(trie.num_nodes)).sum() == len(set(whole))
    assert trie.leaf_sequence(leaves).tolist() == [whole.index(row) for row in whole]
    assert trie.token_ids().tolist() == sorted({token for row in whole for token in row})
    for depth in range(trie.max_tokens):
        assert trie.token_ids(depth).tolist() == sorted({row[depth] for row in whole if len(row) > depth})


def test_the_widths_of_a_depth_hold_its_children_and_padding_is_masked_and_valid():
    trie = Trie.build(RAGGED, end_token=None)
    children = trie.children(torch.tensor([[1, 2], [2, 1]]), 1)
    assert children.mask.tolist() == [[[False, False], [True, True]], [[True, True], [False, False]]]
    assert children.tokens[0, 1].tolist() == [6, 7]
    assert children.nodes[0, 1].tolist() == [3, 4]
    every = trie.children(torch.arange(trie.num_nodes))
    assert every.nodes.max() < trie.num_nodes
    assert set(every.tokens.flatten().tolist()) <= set(trie.token_ids().tolist())


def test_an_end_token_goes_to_all_sequences_as_soon_as_one_begins_another():
    trie = Trie.build([[5, 6], [5], [1]], end_token=9)
    assert set(all_paths(trie)) == {(), (1,), (5,), (1, 9), (5, 6), (5, 9), (5, 6, 9)}
    with pytest.raises(ModelError, match="without an end token; set its eos_token"):
        Trie.build([[5, 6], [5], [1]], end_token=None)
    assert Trie.build([[5, 6], [5, 7], [5, 6]], end_token=9).end_token is None


@pytest.mark.parametrize("sequences", [[], [[1], []], [[3, -1]], np.zeros((0, 3), dtype=int)])
def test_sequences_without_valid_tokens_are_refused(sequences):
    with pytest.raises(ModelError, match="trie:"):
        Trie.build(sequences, end_token=None)


def test_walking_names_the_node_before_each_token_and_repeats_the_leaf():
    trie = Trie.build(RAGGED, end_token=None)
    tokens = torch.tensor([[[5, 6, 0], [5, 7, 9]], [[1, 77, 77], [5, 7, 8]]])
    assert trie.walk(tokens).tolist() == [[[0, 2, 3, 3], [0, 2, 4, 6]], [[0, 1, 1, 1], [0, 2, 4, 5]]]


def test_a_token_outside_the_tree_raises_with_its_place():
    trie = Trie.build(RAGGED, end_token=None)
    with pytest.raises(DeadPrefixError, match=r"completion \[1, 0\] leaves the tree at position 2, got token 6"):
        trie.walk(torch.tensor([[[5, 6, 0], [5, 7, 9]], [[5, 7, 6], [2, 7, 8]]]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_filters_leave_the_nodes_above_what_is_allowed_and_not_banned(seed):
    sequences = random_sequences(seed, ragged=True)
    trie = Trie.build(sequences, end_token=9)
    whole, paths = completions(trie, sequences), all_paths(trie)
    rng = np.random.default_rng(seed)
    banned = [rng.integers(0, 300, size).tolist() for size in (0, 3, 150, 40)]
    allowed = [None, None, None, rng.integers(0, 300, 60).tolist()]
    alive = trie.allowed_nodes(4, banned=banned, allowed=allowed)
    for row in range(4):
        gone = {whole[i] for i in banned[row]}
        left = {whole[i] for i in (range(300) if allowed[row] is None else allowed[row])} - gone
        expected = {paths[done[:length]] for done in left for length in range(len(done) + 1)}
        assert set(alive[row].nonzero().flatten().tolist()) == expected


def test_banning_one_of_two_items_that_share_a_sequence_bans_the_sequence():
    trie = Trie.build(RAGGED, end_token=None)
    assert trie.allowed_nodes(1, banned=[[4]])[0].tolist() == [True, True, True, False, True, True, True]


def test_no_filter_leaves_everything_and_an_empty_result_raises_with_the_request():
    trie = Trie.build(RAGGED, end_token=None)
    assert trie.allowed_nodes(2).all()
    with pytest.raises(DeadPrefixError, match=r"requests, got \[1, 2\]"):
        trie.allowed_nodes(3, banned=[[], [0, 1, 2, 3], [2]], allowed=[None, None, [2]])


def test_semantic_ids_become_sequences_in_their_order():
    ids = SemanticIds((("<a_1>", "<b_0>"), ("<a_0>", "<b_1>"), ("<a_1>", "<b_0>")))
    tokenizer = tiny_model(ids.vocabulary()).tokenizer
    trie = Trie.from_semantic_ids(ids, tokenizer)
    a0, a1, b0, b1 = tokenizer.convert_tokens_to_ids(["<a_0>", "<a_1>", "<b_0>", "<b_1>"])
    assert trie.token_ids().tolist() == sorted([a0, a1, b0, b1])
    nodes = trie.walk(torch.tensor([[a1, b0], [a0, b1]]))[:, -1]
    assert trie.leaf_sequence(nodes).tolist() == [0, 1]
    longer = SemanticIds((("<a_1>",), ("<a_1>", "<b_0>")))
    assert Trie.from_semantic_ids(longer, tokenizer).end_token == tokenizer.eos_token_id


def test_a_token_that_the_tokenizer_splits_is_refused_by_name():
    ids = SemanticIds((("<a_1>", "<b_0>"), ("<a_1>", "<b_1>")))
    with pytest.raises(ModelError, match="2 of 3 semantic-ID tokens are not one token each, got '<b_0>', '<b_1>'"):
        Trie.from_semantic_ids(ids, tiny_model(("<a_1>",)).tokenizer)


def test_the_shipped_semantic_ids_of_industrial_make_the_tree_that_was_measured():
    index = json.loads((data_folder("amazon_industrial") / "Industrial_and_Scientific.index.json").read_text())
    ids = SemanticIds(tuple(tuple(index[str(item)]) for item in range(len(index))))
    trie = Trie.from_semantic_ids(ids, tiny_model(ids.vocabulary()).tokenizer)
    # minionerec.md, section 3.7: 3,686 items; 15 groups of 31 items share; 48 first codes, 2,295 prefixes of two codes
    assert (len(ids.tokens), len(ids.distinct)) == (3686, 3686 - 31 + 15)
    assert trie.num_nodes == 1 + 48 + 2295 + 3670
    assert [len(trie.token_ids(depth)) for depth in range(3)] == [48, 256, 256]


@pytest.mark.slow
def test_a_million_items_of_four_levels_fit_into_64_megabytes_within_5_seconds():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (1_000_000, 4)) + 256 * np.arange(4)
    start = time.perf_counter()
    trie = Trie.build(rows, end_token=None)
    seconds = time.perf_counter() - start
    some = torch.from_numpy(rows[:1000])
    assert trie.walk(some)[:, -1].tolist() == trie.leaves[:1000].tolist()
    assert trie.num_bytes <= 64e6
    assert seconds <= 5
    alive = trie.allowed_nodes(2, banned=[list(range(1000)), []])
    assert not alive[0, trie.leaves[:1000].long()].any()
    assert alive[1].all()
