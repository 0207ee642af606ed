"""The command line. Subcommands import what they need when they run: `apr --help` loads neither torch, ray nor vllm."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apr.config.text import typed_path
from apr.errors import AprError, ConfigError, UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

# Nothing reaches for a hub or reports usage unless asked, and libraries keep their progress bars to themselves.
for _name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "VLLM_NO_USAGE_STATS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

EPILOG = """configuration: shipped presets are named (`--config tiny_cpu`), files are paths; later files win, then
`dotted.key=value` overrides. `--print-config` shows the result, `--dry-run` also checks what it needs.

examples:
  apr quickstart
  apr data generate --config tiny_cpu out=runs/data
  apr data import train_apr.json --out runs/published
  apr sft --config tiny_cpu data=runs/data solver=spawn_join out=runs/sft
  apr rl --config tiny_cpu data=runs/data checkpoint=runs/sft/checkpoint cluster.address=local
  apr rl --resume runs/rl
  apr eval --config tiny_cpu data=runs/data checkpoint=runs/sft/checkpoint out=runs/eval/sft
  apr report runs/eval/sft runs/eval/rl runs/rl --out report
  apr view runs/eval/sft runs/eval/rl --out view.html
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="apr",
        description="Train language models to spawn child threads of their own decoding and join their results.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="make or check problems and demonstrations")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    _configured(actions.add_parser("generate", help="problems by split, and demonstrations from each teacher"))
    verify = actions.add_parser("verify", help="check a data folder: every problem, every solution, every trace")
    verify.add_argument("folder", type=typed_path)
    published = actions.add_parser("import", help="read APR's published JSON, and report what its known bugs damaged")
    published.add_argument(
        "file", type=typed_path, help="rows with trace_dict or search_path, or the prompts of the RL data"
    )
    published.add_argument("--out", type=typed_path, help="folder to write (default: runs/import/NAME)")
    published.add_argument("--dry-run", action="store_true", help="only report; write nothing")
    export = actions.add_parser("export", help="write traces of the paper dialect as published JSON")
    export.add_argument("traces", type=typed_path, help="a file of traces, as `apr data import` writes it")
    export.add_argument("--out", type=typed_path, required=True, help="JSON file to write")
    _configured(commands.add_parser("sft", help="supervised fine-tuning on demonstrations"))
    rl = commands.add_parser("rl", help="reinforcement learning over spawned threads")
    _configured(rl)
    rl.add_argument("--resume", type=typed_path, metavar="RUN", help="go on with this run from its newest checkpoint")
    _configured(commands.add_parser("eval", help="evaluate a checkpoint on held-out problems"))
    report = commands.add_parser("report", help="a page, figures and data from evaluations and RL runs")
    report.add_argument(
        "runs", type=typed_path, nargs="+", metavar="RUN", help="folders written by `apr eval` and `apr rl`"
    )
    report.add_argument(
        "--data", type=typed_path, help="the data folder, for the teachers' own success (default: the evaluations')"
    )
    report.add_argument("--out", type=typed_path, default=Path("report"), help="folder to write (default: report)")
    report.add_argument("--title", default="Spawn and join: evaluation report")
    view = commands.add_parser("view", help="one HTML file in which traces are looked at, one by one or side by side")
    view.add_argument(
        "paths",
        type=typed_path,
        nargs="+",
        metavar="PATH",
        help="folder of an evaluation or of an RL run, or a file of traces",
    )
    view.add_argument("--out", type=typed_path, default=Path("view.html"))
    view.add_argument("--title", help="of the page (default: the names of the runs)")
    view.add_argument("--limit", type=int, metavar="N", help="only the first N traces of each path")
    view.add_argument("--outcome", choices=("all", "correct", "wrong"), default="all", help="only such traces")
    view.add_argument("--step", type=int, metavar="N", help="of RL runs named by folder (default: the newest)")
    export = commands.add_parser("export", help="a checkpoint as a Hugging Face folder, with a model card")
    export.add_argument(
        "checkpoint", type=typed_path, help="a checkpoint, an adapter's folder, or that of an SFT or RL run"
    )
    export.add_argument("--out", type=typed_path, required=True, help="folder to write")
    export.add_argument(
        "--eval",
        type=typed_path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="its evaluation, for the card; repeatable",
    )
    export.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    export.add_argument(
        "--base", type=typed_path, help="of an adapter: the model that it adapts, if it names none here"
    )
    export.add_argument(
        "--license", default="unknown", help="for the card, as Hugging Face names it: apache-2.0, mit, ..."
    )
    _configured(
        commands.add_parser("quickstart", help="the whole path on two cores: data, SFT, RL, evaluation, report")
    )
    commands.add_parser("doctor", help="what is installed, what does not fit together, and what to do about it")
    return top


def _configured(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="preset or YAML file; repeatable"
    )
    command.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    command.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    command.add_argument("--dry-run", action="store_true", help="check the configuration and stop")


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes overrides in one place only; here they may stand between options."""
    top = parser()
    arguments, left = top.parse_known_args(argv)
    overrides = [word for word in left if "=" in word and not word.startswith("-")]
    if left and (overrides != left or not hasattr(arguments, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        arguments.overrides += overrides
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a failed run, 2 for a user's error, 130 for SIGINT or SIGTERM."""
    arguments = _parsed(argv)
    from apr.data.workers import ended_by_signals

    try:
        with ended_by_signals():
            return _run(arguments)
    except UserError as error:
        print(f"apr: error: {error}", file=sys.stderr)
        return 2
    except AprError as error:
        print(f"apr: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"apr: interrupted: {str(error) or 'call the same command again to go on'}", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "doctor":
            from apr.doctor import doctor

            return doctor()
        case "report":
            from apr.report.build import build_report

            print(build_report(arguments.runs, arguments.data, arguments.out, arguments.title))
            return 0
        case "view":
            from apr.report.view import view

            a = arguments
            print(view(a.paths, a.out, a.title, a.limit, a.outcome, a.step))
            return 0
        case "export":
            from apr.export import export

            given = arguments
            print(export(given.checkpoint, given.out, given.eval, given.dtype, given.base, given.license))
            return 0
        case "data" if arguments.action == "verify":
            from apr.data.check import check_folder

            print(check_folder(arguments.folder))
            return 0
        case "data" if arguments.action in ("import", "export"):
            return _exchange(arguments)
        case "data":
            return _configured_run("data", arguments)
        case command:
            return _configured_run(command, arguments)


def _exchange(arguments: argparse.Namespace) -> int:
    """`apr data import` and `apr data export`."""
    from apr.data.exchange import export_file, import_file
    from apr.tokens.paper import PaperDialect

    if arguments.action == "export":
        print(export_file(arguments.traces, arguments.out, PaperDialect()))
        return 0
    out = arguments.out or Path("runs/import") / arguments.file.stem
    print(import_file(arguments.file, None if arguments.dry_run else out, PaperDialect()))
    if not arguments.dry_run:
        print(f"traces, problems and the report in {out}")
    return 0


def _configured_run(stage: str, arguments: argparse.Namespace) -> int:
    from apr import config as c
    from apr.presets import dump, load

    kinds: dict[str, type[BaseModel]] = {
        "data": c.DataConfig, "sft": c.SftConfig, "rl": c.RlConfig, "eval": c.EvalConfig, "quickstart": c.QuickstartConfig,
    }  # fmt: skip
    files = [_config_file(stage, name) for name in arguments.config]
    resume = getattr(arguments, "resume", None)
    if resume is not None:
        if files:
            raise ConfigError("--resume takes the run's own configuration: leave --config out")
        from apr.runs import check_kind

        check_kind(resume, stage)
        if any(override.partition("=")[0].strip() == "out" for override in arguments.overrides):
            raise ConfigError(f"--resume {resume} goes on in its own folder: leave out=... out, or start a new run")
        files = [resume / "config.yaml"]
    config = load(kinds[stage], files, arguments.overrides)
    if resume is not None:
        config = config.model_copy(update={"out": resume})
    if arguments.print_config:
        print(dump(config), end="")
        return 0
    if arguments.dry_run:
        _check_needs(config, resume is not None)
        print(f"{stage}: the configuration is sound, and what it needs is there; nothing was run")
        return 0
    match config:
        case c.DataConfig():
            from apr.data.generate import generate

            generate(config)
            print(f"data in {config.out}")
        case c.SftConfig():
            from apr.sft.train import train

            print(f"checkpoint in {train(config)}")
        case c.RlConfig():
            from rl.launch import launch

            print(f"checkpoint in {launch(config, resume is not None)}")
        case c.EvalConfig():
            from apr.evaluation.run import evaluate

            summary = evaluate(config)
            print(f"{config.out}: {summary.correct} of {summary.n} correct")
        case c.QuickstartConfig():
            from apr.quickstart import quickstart

            return quickstart(config)
    return 0


def _check_needs(config: BaseModel, resume: bool) -> None:
    """Raise `UserError` if data or a checkpoint that `config` names is missing or unfit, or an option of a new run cannot
    act."""
    from apr import config as c
    from apr.data.store import read_demonstrations, read_problems
    from apr.engines.build import check_window
    from apr.merge import model_folder
    from apr.pretrained import chat_vocabulary, located

    match config:
        case c.DataConfig():
            if config.tokenizer is not None:
                chat_vocabulary(config.tokenizer, config.control_tokens)
        case c.SftConfig():
            next(read_demonstrations(config.data, config.solver), None)
            if config.base is not None:
                located(config.base)
        case c.EvalConfig():
            read_problems(config.data, config.split)
            check_window(model_folder(config.checkpoint, config.base), config.limits.context, config.dialect)
        case c.RlConfig():
            if not resume:
                c.refuse_idle(config)
            for split in ("train", "validation"):
                read_problems(config.data, split)
            check_window(config.checkpoint, config.limits.context, config.dialect)


def _config_file(stage: str, name: str) -> Path:
    """A path, or the name of a shipped preset of this stage."""
    from apr.presets import preset

    path = typed_path(name)
    return path if path.suffix in (".yaml", ".yml") or path.is_file() else preset(stage, name)


if __name__ == "__main__":
    sys.exit(main())
