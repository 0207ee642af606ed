"""Where a checkpoint comes from and what was measured of it, read from its card, its runs' folders and evaluations."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from apr.checkpoints.card import ADAPTER_STAGE, Adapter, Card
from apr.config import DataConfig, EvalConfig
from apr.contact import Contact
from apr.data.store import problems_hash
from apr.errors import ConfigError, DataError
from apr.evaluation.folder import SUMMARY, read_card, read_contact, read_facts
from apr.presets import load_recorded
from apr.runs import CONFIG, MANIFEST
from apr.sft.train import CHECKPOINT

RUN: dict[str, type] = {"kind": str, "commit": str, "data_hash": str}
EVALUATION: dict[str, type] = {
    "checkpoint_hash": str, "data_hash": str, "card": dict, "commit": str, "versions": dict, "traces": int,
}  # fmt: skip
RESTORE = "restore that run's folder, or export a copy of the checkpoint alone"
MEANS = ("context", "work", "span_sampled", "parallelism_sampled", "threads")  # costs in a model card


@dataclass(frozen=True)
class Stage:
    """A stage of training. `config` is as the run recorded it, by whatever version; None, and `facts` empty, where the run's
    folder is not at hand."""

    name: str
    config: dict[str, Any] | None
    facts: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """A finished evaluation. `problems` says what its problems are like, if their data set is at hand; `contact` what they
    share with training, if that was recorded."""

    name: str
    config: EvalConfig
    facts: dict[str, Any]
    summary: dict[str, Any]
    problems: dict[str, Any] | None
    contact: Contact | None
    card: Card  # what the checkpoint said of itself


def stages(checkpoint: Path, card: Card) -> list[Stage]:
    """The stages that the card names, oldest first, each with its run if that is where it was."""
    found: dict[str, Stage] = {}
    place: Path | None = checkpoint
    while place is not None and (run := _run_of(place)) is not None:
        facts = read_facts(run, RUN, RESTORE)
        place = None
        if facts["kind"] == "rl" and "rl" not in found:
            config = _recorded(run)
            found["rl"] = Stage("rl", config, facts)
            place = Path(str(config.get("checkpoint", "")))
        elif facts["kind"] == "sft" and facts["data_hash"] == card.data_hash:
            found["sft"] = Stage("sft", _recorded(run), facts)
    return [found.get(name, Stage(name, None, {})) for name in card.trained]


def _recorded(run: Path) -> dict[str, Any]:
    """The configuration of a run. Raises `DataError`."""
    path = run / CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is corrupt ({error}): {RESTORE}") from error
    if not isinstance(config, dict):
        raise DataError(f"{path} is corrupt (it names no keys): {RESTORE}")
    return config


def _run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, by where it lies."""
    place = checkpoint.resolve()
    run = place.parent.parent if place.parent.name == "checkpoints" else place.parent
    expected = place.parent.name == "checkpoints" or place.name in ("final", CHECKPOINT)
    return run if expected and (run / MANIFEST).is_file() and (run / CONFIG).is_file() else None


def read_results(folders: Sequence[Path]) -> list[Result]:
    """The evaluations in `folders`, those of one name told apart by number. Raises what `read_result` does, and
    `ConfigError` for one that is given twice."""
    places = [folder.resolve() for folder in folders]
    if twice := [str(folder) for folder, place in zip(folders, places) if places.count(place) > 1]:
        raise ConfigError(f"--eval {' and '.join(twice)} are the same evaluation: name it once")
    results = [read_result(folder) for folder in folders]
    names = [result.name for result in results]
    numbers = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [replace(one, name=f"{one.name} ({n})") if n > 1 else one for one, n in zip(results, numbers)]


def read_result(folder: Path) -> Result:
    """The evaluation in `folder`. Raises `DataError` if it is unfinished or corrupt, `ConfigError` for its configuration."""
    path = folder / SUMMARY
    if not path.is_file() or not (folder / CONFIG).is_file():
        raise DataError(
            f"{folder} holds no finished evaluation ({SUMMARY}): run `apr eval ... out={folder}` to its end"
        )
    again = f"run `apr eval --config {folder / CONFIG} out={folder}`, which keeps the traces"
    facts = read_facts(folder, EVALUATION, again)
    summary = _summary(path, again)
    if (tried := summary["n"] + summary["lost"]) != facts["traces"]:  # of an earlier call, for fewer problems
        raise DataError(
            f"{folder} holds an unfinished evaluation: {path} is of {tried} attempts, and {facts['traces']} were asked for "
            f"since. To finish it, {again}"
        )
    config = load_recorded(EvalConfig, folder / CONFIG)
    problems = _problems(config, facts["data_hash"])
    card = read_card(folder, facts)
    return Result(folder.resolve().name, config, facts, summary, problems, read_contact(folder, facts), card)


def _summary(path: Path, again: str) -> dict[str, Any]:
    """What an evaluation wrote at its end. Raises `DataError`."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        low, high = map(float, summary["interval"])
        numbers = [summary["accuracy"], *(summary["costs"][cost]["mean"] for cost in MEANS)]
        if not all(type(number) in (int, float) for number in numbers):
            raise TypeError("no number")
        if not all(type(summary[count]) is int for count in ("n", "lost")):
            raise TypeError("no count")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is corrupt ({error!r}): {again}") from error
    return {**summary, "interval": (low, high)}


def check_same(result: Result, weights: Collection[str], adapter: Adapter | None) -> None:
    """Raise `DataError` unless the evaluation is of a model whose weights have one of these hashes, or of the `adapter`,
    which may have been merged on another machine, to other last bits."""
    found, card = result.facts["checkpoint_hash"], result.card
    merged = adapter is not None and adapter.same(card.adapter) and card.trained[-1:] == (ADAPTER_STAGE,)
    if found not in weights and not merged:
        raise DataError(
            f"evaluation {result.name} is of another checkpoint (its weights: {found}) than the one exported "
            f"({', '.join(sorted(weights))}): leave it out, or evaluate this one"
        )


def _problems(config: EvalConfig, data_hash: str) -> dict[str, Any] | None:
    """How the problems were drawn, if the data set that they come from is still where it was."""
    path = config.data / CONFIG
    try:
        if not path.is_file() or problems_hash(config.data, config.split) != data_hash:
            return None
    except DataError:  # moved or made anew since: then nothing is known of it
        return None
    return load_recorded(DataConfig, path).env.model_dump()
