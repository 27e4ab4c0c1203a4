"""The demo's shop: its items with their texts, and the whole numbers that say what is bought after what.

Everything is built from uniform draws and whole-number arithmetic, without ``log``, ``exp`` or matrix products in
floating point, so that a seed gives the same shop on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlkit.recsys.data.catalog import Item

# Neighbors in this order share brands, and people go on from one to the next.
CATEGORIES: dict[str, tuple[str, str, str, str]] = {
    "Camping": ("Tent", "Sleeping Bag", "Camp Stove", "Lantern"),
    "Climbing": ("Rope", "Harness", "Carabiner", "Chalk Bag"),
    "Running": ("Running Shoe", "Running Belt", "Heart Monitor", "Foam Roller"),
    "Cycling": ("Bicycle Helmet", "Floor Pump", "Saddle", "Chain Lock"),
    "Workshop": ("Cordless Drill", "Drill Bit", "Wood Screw", "Workbench"),
    "Gardening": ("Pruner", "Raised Bed", "Seed Mix", "Garden Hose"),
    "Kitchen": ("Chef Knife", "Cutting Board", "Skillet", "Stock Pot"),
    "Coffee": ("Grinder", "Espresso Cup", "Coffee Bean", "Milk Frother"),
    "Office": ("Desk Lamp", "Notebook", "Fountain Pen", "Paper Tray"),
    "Photography": ("Camera", "Tripod", "Memory Card", "Camera Strap"),
    "Music": ("Guitar", "Guitar String", "Guitar Tuner", "Amplifier"),
    "Travel": ("Suitcase", "Packing Cube", "Neck Pillow", "Power Adapter"),
}
BRANDS = (
    "Alpenrose", "Borealis", "Cobalt", "Driftwood", "Evergreen", "Falkner",
    "Granite Peak", "Harrow", "Ironwood", "Juniper", "Kestrel", "Lumen",
)  # fmt: skip
ADJECTIVES = ("Classic", "Compact", "Folding", "Heavy-Duty", "Lightweight", "Pro", "Recycled", "Waterproof")
SIZES = ("Small", "Medium", "Large", "2-Pack", "4-Pack", "Black", "Green", "Red", "Gift Set", "Refill")

BRANDS_PER_CATEGORY = 4
UNIT = 1_000_000
"""What a distribution in whole numbers sums to, nearly."""

LINK_WEIGHTS = (4, 2, 1, 1)
"""An item's companions, strongest first."""
LINK_PERCENT = 30
"""The share of an item's transitions that goes to its companions; the rest follows noun, category and brand."""
SAME_BRAND = 3
"""How much rather the next item is of the same brand."""

TASTE_PRIOR = (6, 5, 4, 3, 3, 2, 2, 2)
"""How common each of the tastes is."""
FAVORITES = (8, 6, 4)
"""How much rather a taste takes items of its favorite categories."""


@dataclass(frozen=True)
class Shop:
    """Items and the whole numbers behind every purchase.

    Args:
        items: N items.
        popularity: (N,) summing to about ``UNIT``.
        transitions: (N, N), from row to column, every row summing to about ``UNIT``, the diagonal empty.
        tastes: (Z, N) how much each taste multiplies the weight of an item, at least 1.
    """

    items: tuple[Item, ...]
    popularity: np.ndarray
    transitions: np.ndarray
    tastes: np.ndarray


def build_shop(items: int, rng: np.random.Generator) -> Shop:
    """Draw a shop.

    Args:
        items: N.
        rng: only its ``random`` is used, whose stream NumPy keeps stable.
    """
    category = np.arange(items) % len(CATEGORIES)  # (N,)
    noun, brand, adjective, size = _attributes(category, rng)
    rank = np.argsort(rng.random(items), kind="stable")
    popularity = _to_unit(UNIT // (rank + 10))  # Zipf-Mandelbrot: 1 / (rank + 10)
    transitions = _transitions(category, noun, brand, popularity, rng)
    return Shop(_items(category, noun, brand, adjective, size), popularity, transitions, _tastes(category, rng))


def _attributes(category: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Draw noun, brand, adjective and size; no two items of a category share all four."""
    shape = (4, BRANDS_PER_CATEGORY, len(ADJECTIVES), len(SIZES))
    combination = np.empty_like(category)
    for one in range(len(CATEGORIES)):
        members = np.flatnonzero(category == one)
        combination[members] = np.argsort(rng.random(int(np.prod(shape))), kind="stable")[: len(members)]
    noun, brand, adjective, size = np.unravel_index(combination, shape)
    return noun, (category + brand) % len(BRANDS), adjective, size


def _items(
    category: np.ndarray, noun: np.ndarray, brand: np.ndarray, adjective: np.ndarray, size: np.ndarray
) -> tuple[Item, ...]:
    names = list(CATEGORIES)
    items = []
    for position, attributes in enumerate(zip(category, noun, brand, adjective, size)):
        shelf, thing, maker, quality, package = attributes
        kind, noun_text = names[shelf], CATEGORIES[names[shelf]][thing]
        title = f"{BRANDS[maker]} {ADJECTIVES[quality]} {noun_text} {SIZES[package]}"
        description = f"{ADJECTIVES[quality]} {noun_text.lower()} for {kind.lower()}, made by {BRANDS[maker]}."
        items.append(Item(str(position), title, description, BRANDS[maker], kind))
    return tuple(items)


def _transitions(
    category: np.ndarray, noun: np.ndarray, brand: np.ndarray, popularity: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Mix general paths (the next noun of a category, neighbor categories, the same brand) with single companions."""
    step = (category - category[:, None]) % len(CATEGORIES)  # (N, N) 0: same category, 1: the next one
    same, onward = step == 0, (noun - noun[:, None]) % 4 == 1
    path = 6 * (same & onward) + 2 * (same & ~onward) + 2 * (step == 1) + 1 * (step == 2)
    path = path * (1 + (SAME_BRAND - 1) * (brand == brand[:, None])) * popularity
    np.fill_diagonal(path, 0)
    path = _to_unit(path)
    links = np.zeros_like(path)
    left = path.copy()
    rows = np.arange(len(path))
    for weight in LINK_WEIGHTS:  # companions lie on the general paths, each is drawn once
        companion = draw(left, rng.random(len(path)))
        links[rows, companion] = UNIT * weight // sum(LINK_WEIGHTS)
        left[rows, companion] = 0
    return (LINK_PERCENT * links + (100 - LINK_PERCENT) * path) // 100


def _tastes(category: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deal favorites so that every category is the favorite of equally many tastes, as nearly as may be."""
    count, kinds = len(TASTE_PRIOR), len(CATEGORIES)
    deals = [np.argsort(rng.random(kinds), kind="stable") for _ in range(-(-count * len(FAVORITES) // kinds))]
    favorites = np.concatenate(deals)[: count * len(FAVORITES)].reshape(count, -1)
    by_category = np.ones((count, kinds), dtype=np.int64)
    np.put_along_axis(by_category, favorites, np.tile(FAVORITES, (count, 1)), axis=1)
    return by_category[:, category]  # (Z, N)


def draw(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Draw one column per row, in proportion to whole-number weights.

    Args:
        weights: (R, N) not negative, every row with at least one positive.
        uniform: (R,) in [0, 1).
    """
    sums = np.cumsum(weights, axis=1)
    total = sums[:, -1]
    threshold = np.minimum((uniform * total).astype(np.int64), total - 1)
    return (sums <= threshold[:, None]).sum(axis=1)  # (R,)


def _to_unit(weights: np.ndarray) -> np.ndarray:
    return weights.astype(np.int64) * UNIT // weights.sum(axis=-1, keepdims=True)
