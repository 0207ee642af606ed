"""Countdown: reach a target from some numbers with + - * /, each number used exactly once."""

from envs.countdown.verify import Verdict, verify

__all__ = ["Verdict", "verify"]
