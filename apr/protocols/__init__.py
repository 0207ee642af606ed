"""The protocols by name, each as its speller spells it."""

import typing
from contextlib import suppress

from apr.errors import ConfigError
from apr.protocols.apar import Apar
from apr.protocols.aspd import Aspd
from apr.protocols.asyncthink import AsyncThink
from apr.protocols.multiverse import Multiverse
from apr.protocols.pasta import Pasta
from apr.protocols.serial import Serial
from apr.protocols.skeleton import Skeleton
from apr.protocols.spawn_join import SpawnJoin
from apr.protocols.threadweaver import ThreadWeaver
from apr.threads.protocol import ThreadProtocol
from apr.tokens.control import JoinRule
from apr.tokens.speller import Speller

_TAGGED = {protocol.name: protocol for protocol in (Multiverse, Aspd, Pasta, ThreadWeaver, AsyncThink, Apar, Skeleton)}
BY_NAME = {Serial.name: Serial, SpawnJoin.name: SpawnJoin, **_TAGGED}
PROTOCOLS = tuple(BY_NAME)
# Those whose parents join over children's keys and values.
SHARING = tuple(name for name, protocol in BY_NAME.items() if protocol.shares)


@typing.runtime_checkable
class OwnProtocols(typing.Protocol):
    """A speller that opens and joins threads in words of its own."""

    def protocol(self, name: str) -> ThreadProtocol: ...


def spoken(speller: Speller) -> tuple[str, ...]:
    """The protocols that a speller's vocabulary can spell."""
    found = []
    for name in PROTOCOLS:
        with suppress(ConfigError):
            found.append(protocol_by_name(name, speller).name)
    return tuple(found)


def protocol_by_name(name: str, speller: Speller, join: JoinRule = "all") -> ThreadProtocol:
    """Control tokens open and join threads, unless the speller does so in words. `join`: whether a parent waits for all its
    children, or until the first returns a message. Raises `ConfigError` for a protocol that spawns in a vocabulary without
    control tokens, and for one whose parents always wait for all."""
    if join == "first" and (name != SpawnJoin.name or isinstance(speller, OwnProtocols)):
        raise ConfigError(
            f"join=first is an option of protocol {SpawnJoin.name} in control tokens; {name} in this speller has rules of its "
            "own for what a parent waits for: leave it out"
        )
    if isinstance(speller, OwnProtocols):
        return speller.protocol(name)
    control = speller.vocabulary.control
    if name == Serial.name:
        return Serial(control)
    if control.spawn < 0:
        raise ConfigError(
            f"protocol {name} needs a model that was taught its control tokens, and this one has none: set protocol=serial, or "
            "train it first by `apr sft` with `base`"
        )
    return SpawnJoin(control, first=join == "first") if name == SpawnJoin.name else _TAGGED[name](speller)
