"""Read the sources of a chat domain: every file once, every bad row by its line, and what follows from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rlkit.chat.data.files import Unreadable, Values, find_files, first_values, read_values
from rlkit.chat.data.formats import FORMATS, LOOK, Detected, detect
from rlkit.chat.data.kinds import as_kind, demonstrations_from, prompts_from
from rlkit.chat.data.report import BadRow, FileReport, check, short
from rlkit.chat.data.rows import KINDS, SPLITS, Question, Row
from rlkit.chat.data.splits import SourceData, cut_by_prompt, keep_apart
from rlkit.config.chat import ChatFilesSettings, ChatSettings
from rlkit.errors import DataError
from rlkit.plugins import Registry, load_plugins
from rlkit.records import Source

logger = logging.getLogger(__name__)

Splits = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class ChatData:
    """All rows of a chat domain.

    Args:
        rows: of each kind (demonstrations, preferences, feedback, steps, prompts), by split, in file order; empty
            splits where the recipe gives none.
        reports: of every file.
    """

    rows: Mapping[str, Splits]
    reports: tuple[FileReport, ...]

    @property
    def splits(self) -> Mapping[str, tuple[Question, ...]]:
        """Return the prompts by split."""
        return self.rows["prompts"]

    @property
    def files(self) -> tuple[str, ...]:
        """Return every file that was read, once."""
        return tuple(dict.fromkeys(report.path for report in self.reports))


def read_chat(settings: ChatSettings, registry: Registry | None = None) -> ChatData:
    """Read what the settings name, and derive what they leave out.

    Prompts come from demonstrations (the answer is the completion), else from preferences, feedback or steps;
    demonstrations come from prompts that carry answers.

    Raises:
        DataError: every bad row of every file, by file and line.
    """
    sources: dict[str, SourceData] = {}
    problems: list[str] = []
    for kind, source in settings.sources().items():
        try:
            target = (registry or load_plugins()).get("data_format", getattr(source, "type", "")).load()
            sources[kind] = target(source, kind)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*dict.fromkeys(problems))
    apart = keep_apart(sources)
    rows: dict[str, Splits] = {kind: apart[kind].splits for kind in apart}
    return ChatData(_completed(rows), tuple(report for one in sources.values() for report in one.reports))


def _completed(rows: dict[str, Splits]) -> dict[str, Splits]:
    known = next(kind for kind in ("prompts", "demonstrations", "preferences", "feedback", "steps") if kind in rows)
    prompts = rows.get("prompts") or {split: prompts_from(rows[known][split]) for split in SPLITS}
    shown = rows.get("demonstrations") or {split: demonstrations_from(prompts[split]) for split in SPLITS}
    nothing: Splits = dict.fromkeys(SPLITS, ())
    return {kind: nothing for kind in KINDS} | rows | {"prompts": prompts, "demonstrations": shown}


# ---- one source


def kind_of(path: Path) -> str:
    """Return the kind of source that a file or folder is made for, by its first rows.

    Raises:
        DataError: it cannot be read, or its format is not known.
    """
    try:
        first = find_files(path.expanduser())["train"][0]
        values = read_values(first, LOOK)
    except Unreadable as error:
        raise DataError(f"{path}: {error}") from error
    found = detect(first_values(values, LOOK))
    if found is None:
        report = FileReport(str(first))
        _rows(values, "auto", "prompts", report)
        check([report])
    assert found is not None
    return FORMATS[found.format].gives[0]


def read_files(settings: ChatFilesSettings, kind: str) -> SourceData:
    """Read one source from its files.

    Args:
        settings: the files, and what to do about bad rows.
        kind: what the rows are to be: demonstrations, preferences, feedback, steps or prompts.

    Raises:
        DataError: every bad row, by file and line; or no row can be used.
    """
    rows, reports = read_rows(settings, kind)
    if settings.on_bad_row == "error" or any(report.failed or not report.rows for report in reports):
        check(reports)
    for report in reports:
        _say(*_lines(report))
    if valid := rows.get("valid"):
        return SourceData(_all_splits(rows["train"], valid, rows), tuple(reports))
    try:
        train, valid = cut_by_prompt(rows["train"], settings.valid_share)
    except ValueError as error:
        raise DataError(f"{settings.path}: {error}") from error
    return SourceData(_all_splits(train, valid, rows), tuple(reports), cut=True)


def read_rows(settings: ChatFilesSettings, kind: str) -> tuple[dict[str, tuple[Row, ...]], list[FileReport]]:
    """Read the files of a source as they are: the rows that can be used by split, and what is to say of each file."""
    reports: list[FileReport] = []
    rows = {split: _read_all(files, split, settings, kind, reports) for split, files in _files(settings, reports)}
    return rows, reports


def _all_splits(train: tuple[Row, ...], valid: tuple[Row, ...], rows: Splits) -> dict[str, tuple[Row, ...]]:
    return {"train": train, "valid": valid, "test": rows.get("test") or valid}


def _files(settings: ChatFilesSettings, reports: list[FileReport]) -> list[tuple[str, list[Path]]]:
    """Return the files of each split; named ones win over those that a folder holds."""
    found: dict[str, list[Path]] = {}
    for split, name in (("train", settings.path), ("valid", settings.valid), ("test", settings.test)):
        if name is None:
            continue
        try:
            files = find_files(Path(name).expanduser())
        except Unreadable as error:
            reports.append(FileReport(name, split, failed=str(error)))
            continue
        if split == "train":
            found = files
        else:
            found[split] = [file for part in files.values() for file in part]
    return list(found.items())


def _read_all(
    files: list[Path], split: str, settings: ChatFilesSettings, kind: str, reports: list[FileReport]
) -> tuple[Row, ...]:
    rows: list[Row] = []
    for file in files:
        report = FileReport(str(file), split)
        reports.append(report)
        try:
            rows += _rows(read_values(file, settings.max_rows), settings.format, kind, report)
        except Unreadable as error:
            report.failed = str(error)
    return tuple(rows)


def _rows(values: Values, name: str, kind: str, report: FileReport) -> list[Row]:
    report.blank = values.blank
    report.bad += [(Source(report.path, line), problem) for line, problem in values.bad]
    found = detect(first_values(values, LOOK)) if name == "auto" else Detected(name, "named by the recipe")
    if found is None or kind not in FORMATS[found.format].gives:
        _no_format(values, found, kind, report)
        return []
    report.format, report.reason = found
    rows: list[Row] = []
    for line, value in values.rows:
        source = Source(report.path, line)
        try:
            new = [as_kind(row, kind) for row in _parsed(value, found.format, source)]
        except BadRow as bad:
            report.bad += [(source, problem) for problem in bad.problems]
        else:
            rows += new
    report.rows = len(rows)
    return rows


def _parsed(value: Any, name: str, source: Source) -> list[Row]:
    if not isinstance(value, str if name == "text" else dict):
        wanted = "a text" if name == "text" else "an object"
        raise BadRow(f"not {wanted}, got {short(value)}; write rows of one form only")
    return FORMATS[name].parse(value, source)


_NEEDED = {
    "demonstrations": "messages, conversations, instruction and output, or prompt and completion",
    "preferences": "prompt, chosen and rejected",
    "feedback": "messages, or prompt and completion, with label",
    "steps": "prompt, completions (the steps) and labels",
    "prompts": "prompt, or plain lines",
}


def _no_format(values: Values, found: Detected | None, kind: str, report: FileReport) -> None:
    if not values.rows:
        if not report.bad:
            report.failed = f"holds no row; write rows with {_NEEDED[kind]}"
    elif found is None:
        line, first = values.rows[0]
        got = f"the keys {short(sorted(map(str, first)), 100)}" if isinstance(first, dict) else short(first)
        wrong = f"no known format, got {got}; rename the keys to {_NEEDED[kind]}"
        report.bad.append((Source(report.path, line), wrong))
    else:
        report.format, report.reason = found
        others = " or ".join(FORMATS[found.format].gives)
        wrong = f"holds rows of the format {found.format} ({found.reason}), which give {others} but no {kind}"
        report.failed = f"{wrong}; {kind} need {_NEEDED[kind]}"


def _lines(report: FileReport) -> tuple[str, ...]:
    """Return what is said of a file that was read: one line, and the rows that were skipped."""
    counts = f"{report.rows:,} rows"
    counts += f", {report.blank:,} blank lines skipped" if report.blank else ""
    counts += f", {report.bad_rows:,} bad rows skipped" if report.bad else ""
    first = f"{report.path}: format {report.format} ({report.reason}), {counts}"
    return (first, *(report.problems() if report.bad else ()))


@cache
def _say(first: str, *skipped: str) -> None:
    """Say it once per process: a file is read by the check and by the run."""
    if skipped:
        logger.warning("\n  ".join((first, *skipped)))
    else:
        logger.info(first)
