"""Read recommendation data in MiniOneRec's format, and report every problem of its files at once.

The CSV columns are ``user_id, history_item_title, item_title, history_item_id, item_id, history_item_sid, item_sid``;
histories are Python lists, oldest first. Items are known by the files' ids, dense or not; semantic IDs have 1 to 8
levels, and may differ in length. What is checked stands in ``minionerec_files`` (which files, their encoding),
``minionerec_catalog`` (item.json, index.json, info) and ``minionerec_rows`` (every cell of every row).
"""

from __future__ import annotations

from pathlib import Path

from rlkit.config.recommendation_data import MiniOneRecDataSettings
from rlkit.records import Source
from rlkit.recsys.data.catalog import Interaction, RecommendationData
from rlkit.recsys.data.minionerec_catalog import Catalog, build_catalog, check_complete, check_info
from rlkit.recsys.data.minionerec_files import SPLITS, find_files, read_json, read_text
from rlkit.recsys.data.minionerec_rows import RowReader
from rlkit.recsys.data.problems import Problems


def read_minionerec(settings: MiniOneRecDataSettings) -> RecommendationData:
    """Read the dataset that a folder holds.

    Args:
        settings: the folder, and the dataset where it holds several.

    Returns:
        Its catalog with the given semantic IDs, and its rows in file order, which upstream writes in time order.

    Raises:
        DataError: what is wrong, by file and line; the first problems of every place, and how many there are.
    """
    files = find_files(Path(settings.path).expanduser(), settings.dataset)
    problems = Problems()
    item_json, index_json = (read_json(files.paths[role], problems) for role in ("item", "index"))
    texts = {role: read_text(files.paths[role], problems) or "" for role in (*SPLITS, "info")}
    problems.check()

    catalog = build_catalog(files.paths, item_json, index_json, problems)
    check_info(files.paths["info"], texts["info"], catalog, problems)
    reader = RowReader(catalog, problems)
    splits = {split: reader.read(files.paths[split], texts[split]) for split in SPLITS}
    if item_json.keys() != index_json.keys():
        check_complete(files.paths, item_json, index_json, _first_uses(catalog, splits), problems)
    problems.check()
    paths = tuple(str(path) for path in files.paths.values())
    return RecommendationData(files.name, catalog.items, splits, catalog.semantic_ids, paths)


def _first_uses(catalog: Catalog, splits: dict[str, tuple[Interaction, ...]]) -> dict[str, Source]:
    uses: dict[str, Source] = {}
    for row in (row for rows in splits.values() for row in rows):
        for item in (*row.history, row.target):
            uses.setdefault(catalog.items[item].key, row.source)
    return uses
