"""The protocols by name, each as its dialect spells it."""

from apr.threads.paper import PaperSerial, PaperSpawnJoin
from apr.threads.protocol import ThreadProtocol
from apr.threads.serial import Serial
from apr.threads.spawn_join import SpawnJoin
from apr.tokens.dialect import Dialect
from apr.tokens.paper import PaperDialect

PROTOCOLS = (Serial.name, SpawnJoin.name)


def protocol_by_name(name: str, dialect: Dialect) -> ThreadProtocol:
    """Control tokens open and join threads, but for the paper dialect, which does so in words."""
    serial = name == Serial.name
    if isinstance(dialect, PaperDialect):
        return PaperSerial(dialect) if serial else PaperSpawnJoin(dialect)
    control = dialect.vocabulary.control
    return Serial(control) if serial else SpawnJoin(control)
