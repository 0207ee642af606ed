"""The trace view: a timeline in which a person sees threads start, run side by side and return.

Python works out the timeline (from `after`, as `apr.threads.costs` does) and embeds it as JSON; `assets/viewer.js`
draws it. Model text reaches the page as JSON strings and then as text nodes only, so it can never become markup.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from apr.runs import write_text
from apr.threads.costs import critical_path, spans
from apr.threads.trace import Strand, StrandId, Thread, Trace

Text = Callable[[Sequence[int]], str]  # token ids to text, for people
ASSETS = Path(__file__).parent / "assets"


def trace_view(traces: Sequence[Trace], text: Text) -> str:
    """HTML of the view of `traces`: a section to put into a page that has `assets/report.css`, once a page.

    `text` gives the text of token ids. It is asked for one token at a time; if the texts of a strand's tokens do not
    make up the strand's text, they are shown with spaces between them.
    """
    if not traces:
        return '<p class="note">No traces were sampled for this report.</p>'
    pieces = {i: text((i,)) for trace in traces for i in _ids(trace)}
    joined = all(
        text(strand.ids) == "".join(pieces[i] for i in strand.ids) for trace in traces for strand in trace.strands
    )
    data = {
        "pieces": pieces,
        "space": "" if joined else " ",
        "traces": [trace_data(trace) for trace in traces],
    }
    content = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    shell = (ASSETS / "viewer.html").read_text()
    script = (ASSETS / "viewer.js").read_text()
    return f'{shell}<script type="application/json" id="apr-traces">{content}</script>\n<script>{script}</script>\n'


def write_view(path: Path, title: str, traces: Sequence[Trace], text: Text) -> None:
    """Write a page that holds nothing but the trace view (`apr view`)."""
    write_text(path, page(title, f"<header><h1>{html.escape(title)}</h1></header>\n{trace_view(traces, text)}"))


def page(title: str, body: str) -> str:
    """A self-contained page. `body` is HTML; whoever makes it escapes what it quotes."""
    style = (ASSETS / "report.css").read_text()
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}</main>\n"
        "</body>\n</html>\n"
    )


def trace_data(trace: Trace) -> dict[str, Any]:
    """What the script draws of one trace, as plain data. Times are sampled tokens since the trace's start.

    Of each strand: `start` (longest chain of sampled tokens that it waited for), `length` (its own), whether it is
    `critical` (on the longest chain), `after` (indices of strands). Of a thread without strands: where it would start.
    """
    until = spans(trace.strands, sampled_only=True)
    index = {strand.id: number for number, strand in enumerate(trace.strands)}
    critical = set(critical_path(trace.strands))
    starts = {strand.id: until[strand.id] - len(strand.sampled) for strand in trace.strands}
    outcome = trace.outcome
    return {
        "title": _title(trace),
        "correct": None if outcome is None else outcome.correct,
        "verdict": "not verified" if outcome is None else outcome.reason,
        "stop": (trace.root.stop if outcome is None else outcome.stop).value,
        "answer": trace.answer,
        "span": max(until.values(), default=0),
        "facts": {
            "costs": {} if trace.costs is None else _costs(trace),
            "limits": _readable(trace.limits),
            "budgets": _readable(trace.budgets),
            "reward": _readable(trace.reward),
        },
        "threads": [
            {
                "id": thread.id,
                "parent": thread.parent,
                "depth": thread.depth,
                "stop": thread.stop.value,
                "message": thread.message,
                "start": _birth(thread, trace, starts, until),
                "strands": [index[strand] for strand in thread.strands],
            }
            for thread in trace.threads
        ],
        "strands": [
            _strand(strand, starts[strand.id], strand.id in critical, [index[before] for before in strand.after])
            for strand in trace.strands
        ],
    }


def _strand(strand: Strand, start: int, critical: bool, after: list[int]) -> dict[str, Any]:
    logprobs = strand.logprobs
    return {
        "id": str(strand.id),
        "thread": strand.id.thread,
        "start": start,
        "length": len(strand.sampled),
        "critical": critical,
        "after": after,
        "sees": [[str(seen.strand), seen.length] for seen in strand.sees],
        "injected": [[run.origin.value, run.ids] for run in strand.injected],
        "sampled": strand.sampled,
        "logprobs": logprobs and [round(value, 3) if math.isfinite(value) else None for value in logprobs],
        "stop": strand.stop.value,
    }


def _birth(thread: Thread, trace: Trace, starts: dict[StrandId, int], until: dict[StrandId, int]) -> int:
    """When the thread starts. One that had no room for a strand starts with its nearest sibling, or with the last
    strand of its parent that could have spawned it."""
    if thread.strands:
        return starts[thread.strands[0]]
    at = trace.threads.index(thread)
    near = sorted(
        (abs(number - at), other.strands[0])
        for number, other in enumerate(trace.threads)
        if other.parent == thread.parent and other.strands
    )
    if near:
        return starts[near[0][1]]
    parent = next((other for other in trace.threads if other.id == thread.parent), None)
    return until[parent.strands[0]] if parent is not None and parent.strands else 0


def _title(trace: Trace) -> str:
    """The problem on one line: the environment's own fields, its id left to the last."""
    fields = {name: value for name, value in trace.problem.items() if name != "id"}
    if fields.keys() >= {"numbers", "target"}:
        return f"{', '.join(map(str, fields['numbers']))} to make {fields['target']}"
    return ", ".join(f"{name} {value}" for name, value in fields.items()) or str(trace.problem.get("id", ""))


def _costs(trace: Trace) -> dict[str, str]:
    costs = trace.costs
    if costs is None:
        return {}
    return {
        "context": f"{costs.context:,}",
        "work": f"{costs.work:,}",
        "span": f"{costs.span_sampled:,} sampled",
        "parallelism": f"{costs.parallelism_sampled:.2f}",
        "threads": f"{costs.threads:,}",
        "width": f"{costs.width:,}",
        "depth": f"{costs.depth:,}",
    }


def _readable(values: dict[str, Any]) -> dict[str, str]:
    return {
        name: f"{value:.3g}" if isinstance(value, float) else str(value)
        for name, value in values.items()
        if value is not None
    }


def _ids(trace: Trace) -> set[int]:
    ids = {i for strand in trace.strands for i in strand.ids}
    return ids.union(*(thread.message for thread in trace.threads))
