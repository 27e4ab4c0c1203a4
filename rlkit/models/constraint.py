"""What a policy needs to know about a constraint: a tree of tokens, walked by node ids.

A node is an integer; the root is 0. Decoding, the loss and rewards see constraints only through this protocol
(``rlkit.recsys.trie.Trie`` implements it), so none of them knows about semantic IDs.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Children(NamedTuple):
    """The continuations of nodes, padded to the widest of them: fresh tensors, which the caller may write to."""

    tokens: Tensor
    """(..., W) int64 vocabulary ids; padding holds some valid id."""
    nodes: Tensor
    """(..., W) the child node behind each token, int32 or int64; padding holds some valid node."""
    mask: Tensor
    """(..., W) True where a child exists."""


class Constraint(Protocol):
    """A finite tree of allowed completions."""

    @property
    def max_tokens(self) -> int:
        """The length of the longest completion, in tokens."""
        ...

    @property
    def end_token(self) -> int | None:
        """The token that ends every completion; None where completions end by themselves."""
        ...

    def to(self, device: object) -> Constraint:
        """Return the same tree on another device."""
        ...

    def children(self, nodes: Tensor, depth: int | None = None) -> Children:
        """Return the continuations of nodes (...); ``depth`` (no node is shallower, but for leaves) pads less."""
        ...

    def is_leaf(self, nodes: Tensor) -> Tensor:
        """Return (...) True where a completion ends."""
        ...

    def walk(self, tokens: Tensor) -> Tensor:
        """Return the node before each token of (..., C) completions, and after the last: (..., C + 1).

        Raises:
            DeadPrefixError: a token that the tree does not allow. After a leaf, every further position is padding
                and repeats the leaf.
        """
        ...

    def token_ids(self, depth: int | None = None) -> Tensor:
        """Return (S,) the sorted vocabulary ids that occur at a depth, or anywhere: the rows of a restricted head."""
        ...
