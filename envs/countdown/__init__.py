"""Countdown: reach a target from some numbers with + - * /, each number used exactly once."""

from envs.countdown.verify import Verdict, canonical, verify

__all__ = ["Verdict", "canonical", "verify"]
