"""`apr data generate`: which problems, which teachers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field, SerializeAsAny, ValidationError, ValidationInfo, model_validator

from apr.config.base import Strict
from apr.config.env import EnvConfig
from apr.user_code import may_import
from apr.values import Unread, typed
from envs.base import TeacherOptions
from envs.registry import env_class


class DataConfig(Strict):
    """Problems by split, and demonstrations from each teacher."""

    seed: int = Field(default=0, description="of the problems and the demonstrations")
    env: EnvConfig = Field(description="the task: a name that `apr envs` lists, or PATH.py:CLASS, and its options")
    problems_from: Path | None = Field(
        default=None,
        description="a data set whose problems are taken, such as `apr data import` writes; null: they are drawn",
    )
    train: int = Field(default=5000, ge=1, description="problems; with problems_from at most so many")
    validation: int = Field(default=200, ge=0, description="problems held out to watch a training")
    test: int = Field(default=1000, ge=0, description="problems held out for evaluation")
    speller: str | None = Field(
        default=None,
        description="chat, or a vocabulary of the environment; default: chat with a tokenizer, else its first",
    )
    tokenizer: Path | None = Field(
        default=None, description="of speller chat: the model's folder or GGUF file, or PACKAGE:FILE"
    )
    control_tokens: list[str] | None = Field(
        default=None, min_length=5, max_length=5,
        description="of speller chat: the tokenizer's own for spawn, msg, </spawn>, join, ret; if none, some are added",
    )  # fmt: skip
    demonstrations_per_problem: int = Field(default=1, ge=1, description="of each teacher")
    solvers: dict[str, SerializeAsAny[TeacherOptions]] = Field(
        default={}, description="teachers by name: protocol, and the environment's own options"
    )
    shard_rows: int = Field(default=10_000, ge=1, description="problems in a file; all but the last hold so many")
    workers: int | None = Field(default=None, ge=1, description="processes; changes no result; default: all cores")
    out: Path = Field(default=Path("runs/data"), description="folder to write")

    @model_validator(mode="after")
    def _names(self) -> DataConfig:
        for name in self.solvers:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name == "problems":
                raise ValueError(
                    f"solvers: {name!r} cannot name a part of a data set: letters, digits and _, not `problems`"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_environment(cls, content: Any, info: ValidationInfo) -> Any:
        """Teachers are told what their environment's teachers can be told; its first speller is the default."""
        if not isinstance(content, dict) or "env" not in content:
            return content
        try:
            env = EnvConfig.model_validate(content["env"], context=info.context)
        except ValidationError:
            return content  # told when the field itself is checked
        made = dict(content)
        solvers = made.get("solvers")
        if not may_import(env.name):
            return {**made, "solvers": typed(solvers, [])} if isinstance(solvers, dict) else made
        own = env_class(env.name)
        if isinstance(solvers, dict):
            made["solvers"] = {name: _options(own.teacher_options, name, given) for name, given in solvers.items()}
        if made.get("speller") is None:
            made["speller"] = "chat" if made.get("tokenizer") is not None else (*own.spellers, "chat")[0]
        elif made["speller"] not in (*own.spellers, "chat"):
            known = ", ".join((*own.spellers, "chat"))
            raise ValueError(f"speller: {made['speller']!r} is none of environment {env.name}: set one of {known}")
        return made

    @model_validator(mode="after")
    def _tokenizer(self) -> DataConfig:
        if (self.speller == "chat") != (self.tokenizer is not None):
            raise ValueError("speller chat needs `tokenizer`, that of the model to be trained; others have their own")
        if self.control_tokens is not None and self.tokenizer is None:
            raise ValueError("control_tokens are those of a `tokenizer`, which only speller chat has")
        return self


def _options(kind: type[TeacherOptions], name: str, given: Any) -> Any:
    """The options of the teacher `name`. Raises `ValueError` that names the key."""
    if not isinstance(given, dict):
        return given
    try:
        return kind.model_validate(typed(given, [kind]))
    except ValidationError as error:
        raise ValueError("; ".join(_fault(kind, name, fault) for fault in error.errors())) from None


def _fault(kind: type[TeacherOptions], name: str, fault: Any) -> str:
    key = ".".join(["solvers", name, *map(str, fault["loc"])])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key}; known here: {', '.join(kind.model_fields)}"
    value = fault["input"]
    return (
        f"{key}: {value.text!r} {value.why}"
        if isinstance(value, Unread)
        else f"{key}: {fault['msg'].removeprefix('Value error, ')}"
    )
