"""A verdict: right or wrong, why, and a score between 0 and 1."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest

from envs.base import Verdict
from envs.countdown import verify


def test_a_verdict_scores_1_or_0_unless_it_says_otherwise() -> None:
    assert Verdict(True, "right").score == 1.0
    assert Verdict(False, "wrong").score == 0.0
    assert Verdict(False, "half", score=0.5).score == 0.5
    assert Verdict(True, "right") == Verdict(True, "right", 1) != Verdict(True, "right", 0.9)
    assert (verify([2, 3], 5, "2+3=5").score, verify([2, 3], 6, "2+3=5").score) == (1.0, 0.0)


@pytest.mark.parametrize("score", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_score_outside_0_to_1_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Verdict(True, "right", score)


def test_verdicts_are_values() -> None:
    verdict = Verdict(False, "half", 0.5)
    assert pickle.loads(pickle.dumps(verdict)) == copy.deepcopy(verdict) == verdict
    assert replace(verdict, reason="other") == Verdict(False, "other", 0.5)
    assert len({verdict, Verdict(False, "half", 0.5)}) == 1
    with pytest.raises(FrozenInstanceError):
        verdict.score = 1.0  # type: ignore[misc]
