"""The card of a data set: what is there, how it was made, and the hashes that anyone who makes it again will get.

It says nothing of when, where, or by how many workers: equal data have equal cards. Its YAML header names each part as
a configuration that `datasets.load_dataset` opens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from apr.config import DataConfig
from apr.data.shards import combined, shard_facts, shard_paths
from apr.data.store import (
    DEMONSTRATIONS,
    PROBLEMS,
    demonstrations_folder,
    demonstrations_hash,
    merged,
    problems_folder,
    problems_hash,
    splits_in,
)
from envs.base import Env, TeacherOptions

CARD = "README.md"


def content_hashes(folder: Path, solvers: Iterable[str]) -> dict[str, str]:
    """The content hash of each part (`problems/train`, ..., `demonstrations/spawn_join`), and of `all` together."""
    hashes = {f"problems/{split}": problems_hash(folder, split) for split in splits_in(folder)}
    hashes |= {f"demonstrations/{name}": demonstrations_hash(folder, name) for name in sorted(solvers)}
    return {**hashes, "all": combined([f"{part} {hash}" for part, hash in hashes.items()])}


def card(config: DataConfig, folder: Path) -> str:
    """The card of the finished data set in `folder`; reads the shards' footers only."""
    env = config.env.build()
    made_by = {key: value for key, value in config.model_dump(mode="json").items() if key not in ("out", "workers")}
    hashes = content_hashes(folder, config.solvers)
    return f"""---
{yaml.safe_dump(_header(config, folder, env.title), sort_keys=False)}---

# {env.title} problems and demonstrations

{env.about} {_origin(config, env)}

```python
from datasets import load_dataset

problems = load_dataset(FOLDER, "problems", split="train")  # or the name of a teacher
```

## Problems

{_table(("split", "problems", "shards"), [_problems(folder, split) for split in splits_in(folder)])}

{_rule(config, env)} Within a split, no problem is there twice. Seed: {config.seed}.

{_demonstrations(config, folder)}

## Content hashes

SHA-256 over the values of all rows, whatever the compression and the number of workers; `apr data verify` computes
them again.

```json
{json.dumps(hashes, indent=1)}
```

## Settings

```yaml
{yaml.safe_dump(made_by, sort_keys=False)}```
"""


def _demonstrations(config: DataConfig, folder: Path) -> str:
    if not config.solvers:
        return "There are no demonstrations: no teacher was named."
    table = _table(_TEACHER, [_teacher(folder, name, solver) for name, solver in config.solvers.items()])
    return f"""## Demonstrations

Of the training problems, {config.demonstrations_per_problem} of each, in the same order and the same shards. Token counts
are of the `{config.speller}` speller; costs are means over the demonstrations, with the largest in brackets.

{table}

* solved: demonstrations that end in a solution; spawning: those with child threads; kept: of the demonstrations asked
  for, those that rejection sampling did not leave out;
* work: tokens of all threads, prompts and messages included; span: sampled tokens on the longest dependent chain;
  context: the largest of any thread; children: the most of any one spawn of the root, where the root spawns.

A row holds what its strands sampled (`tokens`, cut by `strands`); the protocol lays the threads out again:
`apr.data.store.read_demonstrations(FOLDER, NAME)`."""


def _origin(config: DataConfig, env: Env) -> str:
    """Where the problems came from: drawn by these options, or taken from another data set."""
    if config.problems_from is None:
        return env.settings()
    taken = config.problems_from.resolve().name
    return f"The problems are those of the data set `{taken}`, whose card says where they came from."


def _rule(config: DataConfig, env: Env) -> str:
    if config.problems_from is not None:
        return "Splits are those of that data set."
    options = env.options
    return f"""Splits share no {env.shares}: each belongs to the one split that SHA-256 of it and of `split_seed`
({options.split_seed}) says, {options.validation_share:g} of them to validation, {options.test_share:g} to test.
{env.remark()}""".rstrip()


def _header(config: DataConfig, folder: Path, title: str) -> dict[str, Any]:
    configs = [problems_files(folder)]
    for name in config.solvers:
        files = [{"split": "train", "path": f"demonstrations/{name}/train-*.parquet"}]
        configs.append({"config_name": name, "data_files": files})
    return {"pretty_name": f"{title} problems and demonstrations", "configs": configs}


def problems_files(folder: Path) -> dict[str, Any]:
    """The problems as a configuration of the card's header."""
    splits = [{"split": split, "path": f"problems/{split}-*.parquet"} for split in splits_in(folder)]
    return {"config_name": "problems", "data_files": splits}


def _problems(folder: Path, split: str) -> list[str]:
    paths = shard_paths(problems_folder(folder), split)
    rows = sum(int(shard_facts(path, PROBLEMS)["rows"]) for path in paths)
    return [split, f"{rows:,}", str(len(paths))]


_TEACHER = (
    "teacher", "protocol", "demonstrations", "kept", "solved", "spawning", "tokens", "work", "span", "context", "threads",
    "children",
)  # fmt: skip


def _teacher(folder: Path, name: str, solver: TeacherOptions) -> list[str]:
    paths = shard_paths(demonstrations_folder(folder, name), "train")
    found = merged([json.loads(shard_facts(path, DEMONSTRATIONS)["statistics"]) for path in paths])

    def mean(cost: str, over: str = "rows") -> str:
        return f"{found[cost] / max(1, found[over]):,.2f} ({found[f'{cost}_max']:,})"

    def share(part: str, whole: str) -> str:
        return f"{found[part] / max(1, found[whole]):.2%}"

    return [
        name, solver.protocol, f"{found['rows']:,}", share("rows", "asked"), share("solved", "rows"),
        share("spawning", "rows"), f"{found['work']:,}", mean("work"), mean("span_sampled"), mean("context"),
        mean("threads"), mean("children", "spawning"),
    ]  # fmt: skip


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
