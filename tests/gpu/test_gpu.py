"""What only a CUDA machine can show. Skipped elsewhere: a CPU has no second arithmetic to agree with."""

import asyncio
from pathlib import Path

import pytest

from apr.checkpoints.folder import ModelFolder
from apr.config import LearnerConfig
from apr.threads.engine import Request
from apr.threads.layout import causal
from apr.threads.trace import StrandKey

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cuda() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU on this machine")


def test_engine_and_learner_agree_on_a_gpu(make_checkpoint) -> None:
    """The parity check of the RL loop passes between vLLM and the learner, both in float32 on the same GPU."""
    from apr.engines.vllm import VllmEngine
    from rl.learner import Learner
    from rl.samples import Sample

    checkpoint: Path = make_checkpoint(0)

    async def run() -> dict[str, float]:
        engine = VllmEngine(ModelFolder.open(checkpoint), max_context=64, seed=0)
        learner = Learner(checkpoint, LearnerConfig(), temperature=1.0)
        prompt = (1, 20, 30, 40)
        done = await engine.generate(Request(StrandKey(0, "p", 0, "r", 0), prompt, (), 32, 1.0, 7))
        await engine.close()
        n = len(done.ids)
        trained = [len(prompt) + i for i in range(n)]
        before = [place - 1 for place in trained]
        block = causal((*prompt, *done.ids))
        sample = Sample(
            block, trained, before, [0] * n, list(done.logprobs), [1.0] * n, [1 / n] * n, [1 / n] * n, [0] * n
        )
        return await learner.update([[sample]], 1e-4, parity=(1e-4, 1e-2))

    assert asyncio.run(run())["mismatch/abs_gap_mean"] < 1e-4
