"""The folder of an evaluation: what `apr eval` writes, and what is read back to go on or to report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.config import EvalConfig
from apr.errors import DataError
from apr.evaluation.metrics import lost
from apr.presets import load
from apr.runs import CONFIG, MANIFEST
from apr.threads.codec import read_traces
from apr.threads.trace import Trace

TRACES = "traces.jsonl.gz"
SUMMARY = "summary.json"
NEEDED = ("seed", "split", "protocol", "samples", "temperature", "limits")  # of the configuration: no default stands in
# Facts in the manifest: what the model says of itself (its checkpoint may be gone at the time of a report), how its
# tokens are spelt, and how many traces a whole evaluation has.
FACTS: dict[str, type] = {"card": dict, "dialect": str, "vocabulary": str, "traces": int}
_AGAIN = "evaluate again, with another `out`"


@dataclass(frozen=True)
class Evaluation:
    """A whole evaluation: its configuration, the facts of its manifest, and all its traces, in the order of problems."""

    folder: Path
    config: EvalConfig
    facts: dict[str, Any]
    traces: list[Trace]

    @property
    def card(self) -> dict[str, Any]:
        """What the checkpoint said of itself when it was evaluated."""
        return dict(self.facts["card"])


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation in `folder`. Raises `DataError` or `ConfigError` if there is none, or if it is not whole."""
    if not (folder / TRACES).is_file():
        raise DataError(f"{folder} holds no evaluation ({TRACES} is missing): run `apr eval ... out={folder}` first")
    config = _read_config(folder)
    traces = list(read_traces(folder / TRACES))
    again = f"`apr eval --config {folder / CONFIG} out={folder}`"
    facts = read_facts(folder, FACTS, f"write it anew with {again}, which keeps the traces")
    if len(traces) != facts["traces"]:
        raise DataError(f"{folder / TRACES} holds {len(traces)} of {facts['traces']} traces: finish it with {again}")
    if gone := sum(map(lost, traces)):
        raise DataError(f"{gone} traces in {folder / TRACES} lost their engine: delete that file, and run {again}")
    return Evaluation(folder, config, facts, traces)


def _read_config(folder: Path) -> EvalConfig:
    """The configuration of the evaluation in `folder`. Raises `DataError` or `ConfigError`."""
    path = folder / CONFIG
    if not path.is_file():
        raise DataError(f"no {path}, which says how the traces beside it were made: {_AGAIN}")
    config = load(EvalConfig, [path])
    if missing := [key for key in NEEDED if key not in config.model_fields_set]:
        raise DataError(f"{path} does not say {', '.join(missing)}: {_AGAIN}")
    return config


def read_facts(folder: Path, kinds: dict[str, type], cure: str) -> dict[str, Any]:
    """The manifest of a run directory, which must have `kinds`; `cure` says what to do else. Raises `DataError`."""
    path = folder / MANIFEST
    try:
        facts = json.loads(path.read_text())
        unfit = [name for name, kind in kinds.items() if not isinstance(facts[name], kind)]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise DataError(f"{path} is missing, corrupt, or without a fact that it needs ({error!r}): {cure}") from error
    if unfit:
        raise DataError(f"{path} is corrupt ({', '.join(unfit)}): {cure}")
    return dict(facts)
