"""The command line. Subcommands import what they need when they run: `apr --help` loads neither torch, ray nor vllm."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apr.arguments import keys_text, parsed
from apr.errors import AprError, ConfigError, UserError
from apr.processes import end_with_starter
from apr.streams import standard_streams
from apr.values import typed_path

if TYPE_CHECKING:
    from pydantic import BaseModel

# Nothing reaches for a hub or reports usage unless asked, and libraries keep their progress bars to themselves.
for _name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "VLLM_NO_USAGE_STATS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a failed run, 2 for a user's error, 130 for SIGINT or SIGTERM."""
    end_with_starter()
    with standard_streams():
        return _reported(parsed(argv))


def _reported(arguments: argparse.Namespace) -> int:
    """Run one command, its errors as one line each."""
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
    if (named := getattr(arguments, "env", None)) is not None:
        from apr.user_code import allow
        from envs.registry import env_class

        allow(named)
        env_class(named)  # or it says what is wrong with it, whether or not it is needed
    match arguments.command:
        case "envs":
            from envs.registry import listing

            print(listing())
            return 0
        case "doctor":
            from apr.doctor import doctor

            return doctor()
        case "report":
            from apr.report.build import build_report

            print(build_report(arguments.runs, arguments.data, arguments.out, arguments.title, arguments.env))
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

            if arguments.folder.is_file():
                from apr.data.check_scripts import check_scripts

                print(check_scripts(arguments.folder, arguments.env, arguments.protocol))
                return 0
            if arguments.protocol is not None:
                raise ConfigError("--protocol is of a file of scripts: leave it out")
            print(check_folder(arguments.folder, arguments.env))
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
    from envs.countdown.paper import PaperSpeller

    if arguments.action == "export":
        print(export_file(arguments.traces, arguments.out, PaperSpeller()))
        return 0
    out = arguments.out or Path("runs/import") / Path(arguments.file.name.removesuffix(".gz")).stem
    if arguments.env is not None:
        return _import_problems(arguments, out)
    if arguments.column or arguments.split:
        raise ConfigError("--column and --split are for problems of an environment: add --env NAME, or leave them out")
    print(import_file(arguments.file, None if arguments.dry_run else out, PaperSpeller()))
    if not arguments.dry_run:
        print(f"traces, problems and the report in {out}")
    return 0


def _import_problems(arguments: argparse.Namespace, out: Path) -> int:
    """`apr data import FILE --env NAME`."""
    from apr.data.imported import columns_of, import_problems
    from envs.registry import environment

    env = environment(arguments.env)
    columns, dry = columns_of(arguments.column), arguments.dry_run
    print(import_problems(arguments.file, None if dry else out, env, columns, arguments.split))
    if not dry:
        print(f"problems and the report in {out}")
    return 0


def _configured_run(stage: str, arguments: argparse.Namespace) -> int:
    from apr import config as c
    from apr.presets import dump, load, load_recorded
    from apr.user_code import NAMED, allow

    if arguments.keys is not None:
        print(keys_text(stage, arguments.keys), end="")
        return 0
    resume = getattr(arguments, "resume", None)
    if resume is not None:
        if arguments.config:
            raise ConfigError("--resume takes the run's own configuration: leave --config out")
        from apr.runs import check_run

        check_run(resume, stage)
        if any(override.partition("=")[0].strip() == "out" for override in arguments.overrides):
            raise ConfigError(f"--resume {resume} goes on in its own folder: leave out=... out, or start a new run")
        for override in arguments.overrides:  # a file that the run names itself is not run for that
            allow(override.partition("=")[2])
        config = load_recorded(c.KINDS[stage], resume / "config.yaml", arguments.overrides)
        config = config.model_copy(update={"out": resume})
    else:
        files = [_config_file(stage, name) for name in arguments.config]
        config = load(c.KINDS[stage], files, arguments.overrides, NAMED)
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
    """Raise the `UserError` that the command itself would end with, as far as it can be known without starting an engine or
    writing anything. The rules are the command's own."""
    from apr import config as c

    match config:
        case c.DataConfig():
            from apr.data.generate import generate

            generate(config, dry_run=True)
        case c.SftConfig():
            from apr.sft.examples import examples_of
            from apr.sft.train import prepare as prepare_sft

            if not prepare_sft(config).finished:
                with tempfile.TemporaryDirectory() as folder:
                    examples_of(config, Path(folder))
        case c.EvalConfig():
            from apr.evaluation.run import prepare as prepare_evaluation

            prepare_evaluation(config)
        case c.RlConfig():
            from rl.launch import prepare as prepare_rl

            prepare_rl(config, resume)
        case c.QuickstartConfig():
            from apr.quickstart import check_stages

            check_stages(config)


def _config_file(stage: str, name: str) -> Path:
    """A path, or the name of a shipped preset of this stage. Raises `ConfigError` for a name that is neither."""
    from apr.keys import meant
    from apr.presets import available, preset

    path = typed_path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    if not (shipped := preset(stage, name)).is_file():
        known = available(stage)
        raise ConfigError(
            f"no configuration file {name}, and no preset of that name for `apr {stage}`{meant(name, known)} There are: "
            f"{', '.join(known)}"
        )
    return shipped


if __name__ == "__main__":
    sys.exit(main())
