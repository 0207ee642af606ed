"""The folder of an evaluation: what `apr eval` writes, and what is read back to go on or to report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from apr.checkpoints.card import Card
from apr.config import EvalConfig
from apr.contact import Contact
from apr.errors import CheckpointError, DataError
from apr.evaluation.metrics import Attempt, attempt
from apr.presets import load_recorded
from apr.runs import CONFIG, MANIFEST
from apr.threads.codec import read_traces
from apr.threads.trace import Trace

TRACES = "traces.jsonl.gz"
SUMMARY = "summary.json"
NEEDED = ("seed", "split", "protocol", "samples", "temperature", "limits")  # of the configuration: no default stands in
# Facts in the manifest: what the model says of itself (its checkpoint may be gone at the time of a report), how its
# tokens are spelt, how many traces a whole evaluation has, and of which problems.
FACTS: dict[str, type] = {"card": dict, "speller": str, "vocabulary": str, "traces": int, "data_hash": str}
_AGAIN = "evaluate again, with another `out`"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as read back: its configuration, the facts of its manifest, and its attempts, in the order of problems.

    `problems`: each problem tried, by its id. `skipped`: what is wrong with lines that could not be read. `contact`: with
    training; None if it was made before that was recorded. `card`: what the checkpoint said of itself at the time.
    """

    folder: Path
    config: EvalConfig
    facts: dict[str, Any]
    attempts: list[Attempt]
    problems: dict[str, dict[str, Any]]
    skipped: list[str]
    contact: Contact | None
    card: Card

    @property
    def missing(self) -> int:
        """Attempts that were asked for and are not here: not made yet, or in lines that could not be read."""
        return int(self.facts["traces"]) - len(self.attempts)

    def traces(self) -> Iterator[Trace]:
        """The traces themselves, read again from the file: they need not fit in memory."""
        return read_traces(self.folder / TRACES, lambda error: None)  # `skipped` tells of it already


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation in `folder`; lines that cannot be read are skipped and named.

    Raises `DataError` or `ConfigError` if there is none, if nothing says how it was made, or if it has no trace.
    """
    if not (folder / TRACES).is_file():
        raise DataError(f"{folder} holds no evaluation ({TRACES} is missing): run `apr eval ... out={folder}` first")
    config = _read_config(folder)
    again = f"`apr eval --config {folder / CONFIG} out={folder}`"
    facts = read_facts(folder, FACTS, f"write it anew with {again}, which keeps the traces")
    card = read_card(folder, facts)
    contact = read_contact(folder, facts)
    found: dict[tuple[str, int], Attempt] = {}
    problems: dict[str, dict[str, Any]] = {}
    skipped: list[str] = []
    for number, trace in enumerate(read_traces(folder / TRACES, lambda error: skipped.append(str(error))), 1):
        key = (trace.problem["id"], trace.sample)
        if trace.outcome is None or trace.costs is None or key in found:
            what = "tries a problem again that another line tried" if key in found else "has no outcome or no costs"
            skipped.append(f"{folder / TRACES}: readable line {number} {what}")
            continue
        found[key] = attempt(trace)
        problems.setdefault(trace.problem["id"], trace.problem)
    attempts = list(found.values())
    if len(attempts) > facts["traces"]:
        raise DataError(
            f"{folder / TRACES} holds {len(attempts)} traces, more than the {facts['traces']} asked for: delete that file, "
            f"and run {again}"
        )
    if gone := sum(one.lost for one in attempts):
        raise DataError(f"{gone} traces in {folder / TRACES} lost their engine: delete that file, and run {again}")
    if not attempts:
        why = skipped[0] if skipped else "nothing was evaluated yet"
        raise DataError(f"{folder / TRACES} holds no trace that can be read ({why}): run {again}")
    return Evaluation(folder, config, facts, attempts, problems, skipped, contact, card)


def read_card(folder: Path, facts: dict[str, Any]) -> Card:
    """What the manifest of an evaluation says of its checkpoint. Raises `DataError`."""
    try:
        return Card.parse(facts["card"], "its card")
    except CheckpointError as error:
        raise DataError(
            f"{folder / MANIFEST} is corrupt: its card is none that a checkpoint has ({error.__cause__}); {_AGAIN}"
        ) from error


def read_contact(folder: Path, facts: dict[str, Any]) -> Contact | None:
    """What the manifest of an evaluation says of contact with training, if anything. Raises `DataError`."""
    if "contact" not in facts:
        return None
    try:
        return Contact.model_validate(facts["contact"])
    except ValidationError as error:
        raise DataError(f"{folder / MANIFEST} is corrupt (contact: {error}); {_AGAIN}") from error


def _read_config(folder: Path) -> EvalConfig:
    """The configuration of the evaluation in `folder`. Raises `DataError` or `ConfigError`."""
    path = folder / CONFIG
    if not path.is_file():
        raise DataError(f"no {path}, which says how the traces beside it were made: {_AGAIN}")
    config = load_recorded(EvalConfig, path)
    if missing := [key for key in NEEDED if key not in config.model_fields_set]:
        raise DataError(f"{path} does not say {', '.join(missing)}: {_AGAIN}")
    return config


def read_facts(folder: Path, kinds: dict[str, type], cure: str) -> dict[str, Any]:
    """The manifest of a run directory, which must have `kinds`; `cure` says what to do else. Raises `DataError`."""
    path = folder / MANIFEST
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        unfit = [name for name, kind in kinds.items() if type(facts[name]) is not kind]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise DataError(f"{path} is missing, corrupt, or without a fact that it needs ({error!r}): {cure}") from error
    if unfit:
        raise DataError(f"{path} is corrupt ({', '.join(unfit)}): {cure}")
    return dict(facts)
