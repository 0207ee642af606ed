"""How a run's traces are spelt: which speller and tokenizer turn their token ids into text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apr.checkpoints.folder import model_folder
from apr.config import EvalConfig, RlConfig
from apr.errors import DataError
from apr.evaluation.folder import read_facts
from apr.presets import load_recorded
from apr.report.timeline import Describe
from apr.report.viewer import Text
from apr.runs import CONFIG, MANIFEST, models_in
from apr.spellers import speller_of
from apr.tokens.vocabulary import TOKENIZER_FILE
from envs.registry import SPELLERS as BUILT
from envs.registry import at_hand, built_speller

SPELT: dict[str, type] = {"speller": str, "vocabulary": str}


def spelling(folder: Path) -> Text:
    """What spells the traces of the run in `folder`: an evaluation, or an RL run.

    The project's own spellers are at hand. A tokenizer from elsewhere has to be there still, where the run found or
    saved it, and be the same. Raises `DataError` if it is another one now, or if the run does not say; `ConfigError`
    and `CheckpointError` for a configuration or a checkpoint that is missing or unfit.
    """
    kind = run_kind(folder)
    if kind == "eval":
        config = load_recorded(EvalConfig, folder / CONFIG)
        facts = read_facts(folder, SPELT, "evaluate again, with another `out`")
        return _spelt(folder, facts, config.checkpoint, config.speller)
    if kind == "rl":
        start = load_recorded(RlConfig, folder / CONFIG)
        facts = read_facts(folder, {}, "the run must be made again")
        # The run's own, newest first: their tokenizer is that of the checkpoint that the run began from.
        saved = (place for place in models_in(folder) if (place / TOKENIZER_FILE).is_file())
        return _spelt(folder, facts, next(saved, start.checkpoint), start.speller)
    raise DataError(
        f"{folder} is the folder of an `apr {kind}`, which has no traces of a model: name that of an evaluation or of an "
        "RL run"
    )


def describing(folder: Path) -> Describe | None:
    """What describes the problems of the run in `folder`: its environment, where that is at hand."""
    env = at_hand(read_facts(folder, {}, "the run must be made again").get("env") or {})
    return None if env is None else env.describe


def run_kind(folder: Path) -> str:
    """What the run in `folder` is: data, sft, rl, eval or quickstart. Raises `DataError` if it does not say."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder} is no run (no {MANIFEST}, which says how traces are spelt): name the folder of an evaluation or of "
            "an RL run, or a file of traces inside one"
        )
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["kind"])
    except (ValueError, TypeError, LookupError) as error:
        raise DataError(f"{path} is corrupt ({error!r}): write it anew by going on with the run") from error


def _spelt(folder: Path, facts: dict[str, Any], checkpoint: Path, speller: str | None) -> Text:
    """The text of ids in the recorded speller and vocabulary, if they are recorded; RL runs used not to."""
    name, vocabulary = facts.get("speller"), facts.get("vocabulary")
    if name in BUILT and built_speller(name).vocabulary.hash == vocabulary:
        return built_speller(name).vocabulary.text
    found = speller_of(model_folder(checkpoint), speller)
    if vocabulary not in (None, found.vocabulary.hash):
        raise DataError(
            f"the traces of {folder} are spelt in {name}/{vocabulary}, but {checkpoint} is of "
            f"{found.name}/{found.vocabulary.hash} now: put back the checkpoint that they were sampled from, or make the "
            "run again"
        )
    return found.vocabulary.text
