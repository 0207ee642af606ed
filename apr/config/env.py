"""Which environment: `env: {name: countdown, ...its options}`, or `env=NAME` for short."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from apr.errors import ConfigError
from apr.user_code import NAMED, allow, may_import, short
from apr.values import typed
from envs.base import Env
from envs.registry import BUILT_IN, env_class, environment

ENV_OF_DATA = "the task of the data, to be named where it is a file: PATH.py:CLASS; default: what the data say"


class EnvConfig(BaseModel):
    """An environment by name, with all of its options.

    Example: `EnvConfig.model_validate("countdown").model_dump()` holds `{"name": "countdown", "numbers": 4, ...}`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="a name that `apr envs` lists, or PATH.py:CLASS; `env=NAME` for short")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, content: Any, info: ValidationInfo) -> Any:
        """Options of an environment that may be imported are checked, and defaults filled in."""
        content, name = _named(content, info)
        if name is None:
            return content
        options = {key: value for key, value in content.items() if key != "name"}
        if not may_import(name):
            return {"name": name, **typed(options, [])}
        try:
            env = environment(name, typed(options, [env_class(name).Options]))
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return {"name": name, **env.options.model_dump(mode="json")}

    @classmethod
    def variants(cls) -> list[type[BaseModel]]:
        """This class, and the options of the built-in environments, for help texts."""
        return [cls, *(env_class(name).Options for name in BUILT_IN)]

    @property
    def given(self) -> dict[str, Any]:
        """Its options."""
        return dict(self.model_extra or {})

    def build(self) -> Env:
        """The environment. Raises `ConfigError` for one whose file the user has not named."""
        return environment(self.name, self.given)

    def like(self, name: str) -> bool:
        """Whether `name` is that of the same environment, wherever its file lies."""
        return short(self.name) == short(name)


class EnvOfData(BaseModel):
    """An environment by name alone, where the data say with which options it made them.

    Example: `EnvOfData.model_validate("countdown")`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="its name, or PATH.py:CLASS; `env=NAME` for short. Its options are those of the data")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, content: Any, info: ValidationInfo) -> Any:
        """Raises `ValueError` if there is no such environment, where it may be imported."""
        content, name = _named(content, info)
        try:
            if name is not None and may_import(name):
                env_class(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return content


def _named(content: Any, info: ValidationInfo) -> tuple[Any, str | None]:
    """The content, as a mapping where it was a name alone, and the name, None where there is none to check. If the user gave
    it, its file may be imported from here on."""
    if isinstance(content, str):
        content = {"name": content}
    if not isinstance(content, dict) or not isinstance(name := content.get("name"), str):
        return content, None
    if info.context == NAMED:
        allow(name)
    return content, name
