"""One step of RL beside TRL's GRPO: the same model, problems, group, window and KL term, both in one process on the CPU.

    python benchmarks/rl_step.py [--data FOLDER] [--runs 2] [--steps 5] [--batch 192]

Ours is `apr rl --config tiny_cpu` as it stands, in one process, on the serial student (whose traces are one strand each, as
TRL's are); TRL's is `GRPOTrainer` with generation by transformers, which stops at <eos>, and batches of `--batch` completions
in a forward pass: once in float32 without gradient checkpointing, the fastest for so small a model, and once in the precision
and with the checkpointing that `GRPOConfig` has by default. All have our way of waiting (`apr.processors`). Each run is a
fresh process, and they take turns. The first steps of a run warm up and do not count.
Prints seconds per step, tokens per completion (which must agree: equal work) and TRL's time over ours (bar: 2).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from apr.config import RlConfig
from apr.presets import load, preset

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "checkpoints" / "tiny_cpu" / "sos_plus"
WARM_UP = 2
TRL: dict[str, dict[str, Any]] = {  # options of GRPOConfig
    "TRL, fastest": {"bf16": False, "gradient_checkpointing": False},
    "TRL, its defaults": {},
}
Step = dict[str, float]  # its seconds, traces, tokens sampled per trace, and success


def configured(data: Path, out: Path, steps: int) -> tuple[RlConfig, list[str]]:
    """The configuration of both, and how `apr rl` is told."""
    overrides = [
        f"data={data}", f"checkpoint={CHECKPOINT}", "protocol=serial", f"out={out}", f"steps={steps}", "validate_problems=0",
        "checkpoint_every=1000",
    ]  # fmt: skip
    return load(RlConfig, [preset("rl", "tiny_cpu")], overrides), ["rl", "--config", "tiny_cpu", *overrides]


def ours(data: Path, out: Path, steps: int) -> list[Step]:
    config, command = configured(data, out, steps)
    subprocess.run([sys.executable, "-m", "apr.cli", *command], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        {
            "seconds": line["time/step"], "traces": config.problems_per_step * config.group_size,
            "tokens": line["rollout/work_sampled"], "success": line["reward/success"],
        }
        for line in lines
    ]  # fmt: skip


def theirs(data: Path, out: Path, steps: int, batch: int, options: dict[str, Any]) -> list[Step]:
    command = [
        sys.executable, __file__, "--data", str(data), "--steps", str(steps), "--batch", str(batch), "--trl", str(out),
        "--options", json.dumps(options),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    found: list[Step] = json.loads((out / "steps.json").read_text(encoding="utf-8"))
    return found


def run_trl(data: Path, out: Path, steps: int, batch: int, options: dict[str, Any]) -> None:
    """TRL's steps, to `steps.json` in `out`."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from apr.data.store import read_problems
    from apr.protocols import protocol_by_name
    from apr.spellers import speller_of
    from envs.countdown.env import Countdown
    from rl.rollouts import problems_of

    config, _ = configured(data, out, steps)
    speller = speller_of(CHECKPOINT, None)
    env, serial = Countdown(), protocol_by_name("serial", speller)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=False)
    train = read_problems(data, "train")
    problems = [problem for step in range(steps) for problem in problems_of(config, train, step)]
    prompts = [speller.prompt(env, problem) for problem in problems]
    rows = [{"prompt": tokenizer.decode(ids), "problem": problem} for ids, problem in zip(prompts, problems)]
    assert all(tuple(tokenizer(row["prompt"])["input_ids"]) == ids for row, ids in zip(rows, prompts))
    traces = config.problems_per_step * config.group_size
    measured: list[Step] = []
    successes: list[float] = []
    lengths: list[int] = []

    def success(completion_ids: list[list[int]], problem: list[dict[str, Any]], **others: Any) -> list[float]:
        lengths[:] = [len(ids) for ids in completion_ids]
        answers = [serial.control.join_message(tuple(ids)) for ids in completion_ids]
        verdicts = [
            env.verify(one, speller.answer(answer) if answer else None) for one, answer in zip(problem, answers)
        ]
        successes[:] = [float(verdict.ok) for verdict in verdicts]
        return successes

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self.began = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            measured.append({
                "seconds": time.monotonic() - self.began, "traces": len(lengths), "tokens": statistics.fmean(lengths),
                "success": statistics.fmean(successes),
            })  # fmt: skip

    GRPOTrainer(
        model=str(CHECKPOINT),
        reward_funcs=success,
        args=GRPOConfig(
            output_dir=str(out / "trl"), max_steps=steps, per_device_train_batch_size=batch,
            gradient_accumulation_steps=traces // batch, num_generations=config.group_size,
            max_completion_length=config.limits.context - len(prompts[0]), temperature=config.temperature,
            beta=config.learner.kl_weight, learning_rate=config.learner.lr, lr_scheduler_type="constant",
            max_grad_norm=config.learner.max_grad_norm, weight_decay=config.learner.weight_decay, shuffle_dataset=False,
            use_cpu=True, model_init_kwargs={"dtype": "float32"}, report_to="none", save_strategy="no", disable_tqdm=True,
            seed=config.seed, **options,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Clock()],
    ).train()  # fmt: skip
    (out / "steps.json").write_text(json.dumps(measured), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("runs/tiny_cpu/data"), help="apr data generate --config tiny_cpu"
    )
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--trl", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data, steps, batch = arguments.data.resolve(), arguments.steps, arguments.batch
    if arguments.trl is not None:
        run_trl(data, arguments.trl, steps, batch, arguments.options)
        return
    found: dict[str, list[Step]] = {"apr": [], **{name: [] for name in TRL}}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(arguments.runs):
            for name in found:
                out = Path(folder) / f"{name}_{run}"
                out.mkdir()
                steps_made = ours(data, out, steps) if name == "apr" else theirs(data, out, steps, batch, TRL[name])
                found[name] += steps_made[WARM_UP:]
    print("| | seconds per step | traces | tokens per trace | success |\n| --- | --- | --- | --- | --- |")
    medians = {}
    for name, measured in found.items():
        seconds = [one["seconds"] for one in measured]
        medians[name] = statistics.median(seconds)
        traces, tokens, success = (
            statistics.fmean(one[key] for one in measured) for key in ("traces", "tokens", "success")
        )
        print(
            f"| {name} | {medians[name]:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | {traces:.0f} | {tokens:.1f} "
            f"| {success:.3f} |"
        )
    for name in TRL:
        print(f"time of {name} / ours: {medians[name] / medians['apr']:.2f} (bar 2)")


if __name__ == "__main__":
    main()
