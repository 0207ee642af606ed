"""Countdown: reach a target from some numbers with + - * /, each number used exactly once."""

from envs.base import Verdict
from envs.countdown.verify import canonical, verify

__all__ = ["Verdict", "canonical", "verify"]
