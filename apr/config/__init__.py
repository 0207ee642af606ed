"""What can be configured: one typed class for each command. `apr.presets` fills them from YAML files and overrides.

Unknown keys, wrong types and impossible combinations are refused with the key's name. There are no aliases.
"""

from pydantic import BaseModel

from apr.config.base import Strict, Temperature
from apr.config.data import DataConfig
from apr.config.engine import ClusterConfig, ConditionConfig, EngineConfig
from apr.config.env import EnvConfig, EnvOfData
from apr.config.evaluation import EvalConfig
from apr.config.quickstart import QuickstartConfig
from apr.config.rl import Bonus, LearnerConfig, RewardConfig, RlConfig, SoftBudget, refuse_idle
from apr.config.sft import LoraConfig, ModelConfig, SftConfig
from apr.tokens.control import ProtocolName

KINDS: dict[str, type[BaseModel]] = {
    "data": DataConfig, "sft": SftConfig, "rl": RlConfig, "eval": EvalConfig, "quickstart": QuickstartConfig,
}  # fmt: skip

__all__ = [
    "KINDS",
    "Bonus",
    "ClusterConfig",
    "ConditionConfig",
    "DataConfig",
    "EngineConfig",
    "EnvConfig",
    "EnvOfData",
    "EvalConfig",
    "LearnerConfig",
    "LoraConfig",
    "ModelConfig",
    "ProtocolName",
    "QuickstartConfig",
    "RewardConfig",
    "RlConfig",
    "SftConfig",
    "SoftBudget",
    "Strict",
    "Temperature",
    "refuse_idle",
]
