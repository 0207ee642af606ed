"""`apr data verify FILE`: scripts checked against an environment and a protocol."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from apr.config.env import EnvConfig
from apr.data.teach import scripts_by_problem
from apr.errors import ConfigError, DataError, ScriptError
from apr.protocols import PROTOCOLS, protocol_by_name, spoken
from apr.spellers import SPELLERS
from apr.tokens.speller import Speller
from apr.tokens.words import WordsSpeller
from apr.user_code import blamed
from envs.base import Env, PlainTeacher, Teacher, written
from envs.registry import built_speller


def check_scripts(path: Path, env_name: str | None, protocol: str | None) -> str:
    """A few lines of counts. Without `protocol` every protocol is tried, and a script that one cannot express is no fault.

    Raises `DataError` that names the line of what is no script, is of no problem of the environment, uses words that it does
    not have, or cannot be written under `protocol`; `ConfigError` if no environment is named, or no such protocol.
    """
    if env_name is None:
        raise ConfigError(f"{path} is a file of scripts: name their environment, --env NAME (`apr envs` lists them)")
    if protocol not in (None, *PROTOCOLS):
        raise ConfigError(f"--protocol {protocol}: there are {', '.join(PROTOCOLS)}")
    env = EnvConfig.model_validate(env_name).build()
    speller = _speller(env)
    found = scripts_by_problem(path, env)
    scripts = [one for group in found.values() for one in group]
    if not scripts:
        raise DataError(f"{path} holds no script: each line is one")
    teachers = [_teacher(env, name, speller) for name in (spoken(speller) if protocol is None else (protocol,))]
    right, written_under = 0, Counter[str]()
    for one in scripts:
        with blamed(env.config()["name"], f"the problem of line {one.line}"):
            problem = env.problem(one.problem)
        refused = {}
        correct = False  # under any: without a join a child's result answers, and not what the script concludes
        for teacher in teachers:
            name = teacher.options.protocol
            try:
                with blamed(env.config()["name"], f"a script ({name}) for problem {problem['id']!r}"):
                    trace = written(one.script, problem, teacher)
            except ScriptError as error:
                refused[name] = str(error)
                continue
            except DataError as error:
                raise DataError(f"{path}, line {one.line}: {error}") from error
            written_under[name] += 1
            correct = correct or trace.correct
        if protocol in refused or len(refused) == len(teachers):
            raise DataError(f"{path}, line {one.line}: {next(iter(refused.values()))}")
        right += correct
    counts = ", ".join(f"{count:,} under {name}" for name, count in written_under.items())
    what = f"{len(scripts):,} scripts for {len(found):,} problems of {env.name}"
    return f"{path}: {what}, {right:,} right; can be written: {counts}"


def _teacher(env: Env, protocol: str, speller: Speller) -> Teacher:
    options = PlainTeacher.model_validate({"protocol": protocol})
    return Teacher(env, options, speller, protocol_by_name(protocol, speller), 0)


def _speller(env: Env) -> Speller:
    """One with words of the environment's own. Raises `ConfigError` if it has none."""
    if env.vocabulary():
        return WordsSpeller(env.vocabulary())
    built = [name for name in env.spellers if name in SPELLERS and name != WordsSpeller.name]
    if not built:
        raise ConfigError(f"environment {env.name} has no words of its own: such scripts are checked as data are made")
    return built_speller(built[0])
