"""The protocols by name, each as its dialect spells it."""

import typing

from apr.errors import ConfigError
from apr.protocols.serial import Serial
from apr.protocols.spawn_join import SpawnJoin
from apr.threads.protocol import ThreadProtocol
from apr.tokens.dialect import Dialect

PROTOCOLS = (Serial.name, SpawnJoin.name)


@typing.runtime_checkable
class OwnProtocols(typing.Protocol):
    """A dialect that opens and joins threads in words of its own."""

    def protocol(self, name: str) -> ThreadProtocol: ...


def protocol_by_name(name: str, dialect: Dialect) -> ThreadProtocol:
    """Control tokens open and join threads, unless the dialect does so in words. Raises `ConfigError` for a protocol that
    spawns in a vocabulary without control tokens."""
    if isinstance(dialect, OwnProtocols):
        return dialect.protocol(name)
    control = dialect.vocabulary.control
    if name == Serial.name:
        return Serial(control)
    if control.spawn < 0:
        raise ConfigError(
            f"protocol {name} needs a model that was taught its control tokens, and this one has none: set protocol=serial, or "
            "train it first by `apr sft` with `base`"
        )
    return SpawnJoin(control)
