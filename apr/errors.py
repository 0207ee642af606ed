"""Error types. Each says what went wrong, why, and how to mend it; the CLI prints them without a traceback.

A `UserError` (bad config, bad data, bad checkpoint) ends the program with exit status 2. Every class also inherits
the standard exception a caller would expect, and pickles, so that it survives a trip through a Ray actor.
"""


class AprError(Exception):
    """Base of all errors raised on purpose by this project."""


class UserError(AprError, ValueError):
    """Something the user gave cannot work; the message says what, why and how to mend it."""


class ConfigError(UserError):
    """An unknown key, an ill-typed value or an impossible combination in a configuration."""


class DataError(UserError):
    """A malformed problem, or a truncated, corrupt or newer data file."""


class ScriptError(DataError):
    """A script that a protocol cannot express."""


class SchemaError(DataError):
    """Data in a schema that this version does not know: another version reads it, and none of it is to be skipped."""


class CheckpointError(UserError):
    """A checkpoint that is missing, incomplete, or of another tokenizer or schema."""


class RunDirectoryError(UserError):
    """A run directory that is in use, or that holds something else."""


class ResourceError(UserError, RuntimeError):
    """The machine lacks what was asked for: memory, disk, a port, a GPU."""


class EngineError(AprError, RuntimeError):
    """The engine refused or failed; not retried."""


class EngineLostError(EngineError):
    """The engine died with requests in flight; the strand may be sampled again under the same key."""


class TornWeightsError(EngineError):
    """A folder of weights that is not whole, or not of the version asked for; nothing of it was loaded."""


class LearnerLostError(AprError, RuntimeError):
    """A rank of the learner died; the run goes on from its newest checkpoint, with a new learner."""


class JudgeError(AprError, RuntimeError):
    """The environment raised whenever it was asked to judge an answer."""


class ParityError(AprError, RuntimeError):
    """The sampler's and the learner's logprobs of the same tokens disagree: training on them would be wrong."""


class NotFiniteError(AprError, ArithmeticError):
    """A loss, a gradient norm or a weight became NaN or infinite; training stopped, and the last checkpoint is whole."""


class NoSignalError(AprError, RuntimeError):
    """Too many steps in a row gave no group with a usable advantage."""
