"""The protocols by name."""

from apr.threads.protocol import ThreadProtocol
from apr.threads.serial import Serial
from apr.threads.spawn_join import SpawnJoin
from apr.tokens.control import ControlTokens

PROTOCOLS: dict[str, type[Serial] | type[SpawnJoin]] = {cls.name: cls for cls in (Serial, SpawnJoin)}


def protocol_by_name(name: str, control: ControlTokens) -> ThreadProtocol:
    return PROTOCOLS[name](control)
