"""What is tried on a few problems before anything is written, so that an environment that fails does so at once."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import pyarrow as pa

from apr.data.store import check_columns
from apr.data.teach import demonstration_of
from apr.tokens.speller import Speller
from apr.user_code import blamed
from envs.base import Env, Teacher

FEW = 8


def rehearse(problems: pa.Table, env: Env, speller: Speller, teachers: Mapping[str, Teacher]) -> None:
    """Tell the first problems in `speller`, and let each teacher demonstrate them. Says which teachers solve none of them.

    Raises `DataError` for fields that cannot be stored, `ConfigError` that names the place for code of the environment's
    file that fails.
    """
    check_columns(problems)
    few = problems.slice(0, FEW).to_pylist()
    name = env.config()["name"]
    for problem in few:
        with blamed(name, f"the prompt of problem {problem['id']!r}"):
            speller.prompt(env, problem)
    for called, teacher in teachers.items():
        made = [trace for problem in few if (trace := demonstration_of(problem, teacher)) is not None]
        if not any(trace.correct for trace in made):
            with blamed(name, "`verify`"):
                why = (
                    f": {env.verify(made[0].problem, made[0].answer).reason}" if made else ", and gives all of them up"
                )
            print(f"teacher {called} solves none of the first {len(few)} problems{why}", file=sys.stderr)
