"""What an engine of kind `endpoint` asks its server before anything is sampled: is it there, is it of the right model, and
does it give token ids and logprobs? Plain blocking HTTP, which needs no event loop. Answers are bounded in bytes and in
seconds, and no redirect is followed: it would take the API key to another server.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from apr.checkpoints.folder import ModelFolder
from apr.checkpoints.weights import content_id, weight_files
from apr.engines.streamed import MalformedError, parsed, tokens, typed
from apr.errors import CheckpointError, ConfigError
from apr.tokens.text import load_tokenizer

API_KEY = "VLLM_API_KEY"  # the environment variable that `vllm serve` reads, too
FLAGS = "vllm serve CHECKPOINT --logprobs-mode processed_logprobs --no-enable-chunked-prefill"
PATIENCE = 60.0  # seconds to connect, and for an answer before anything is sampled; one that starts refuses at once
LONGEST = 1 << 24  # bytes of an answer before anything is sampled
COMPARED = 1000  # tokens of the vocabulary, spread over all of it
NEUTRAL = {  # sampling from the whole distribution, whatever the model's generation_config.json says
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "ignore_eos": True, "skip_special_tokens": False, "return_token_ids": True, "return_tokens_as_token_ids": True,
}  # fmt: skip


def headers() -> dict[str, str]:
    """The API key, if the environment has one. Raises `ConfigError` for one that no header can carry."""
    key = os.environ.get(API_KEY)
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the environment variable {API_KEY} holds a character that no API key has, perhaps the end of a line: set it "
            "to the key alone"
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def without_key(text: str) -> str:
    """`text` with the API key blotted out: a server may repeat what it was sent."""
    key = os.environ.get(API_KEY)
    return text.replace(key, "***") if key else text


@dataclass(frozen=True)
class Server:
    """A server that was found fit. `model`: its name there. `vocabulary`: ids below it are tokens. `processed`: logprobs
    are at the temperature of the request; if not, at 1."""

    url: str
    model: str
    vocabulary: int
    processed: bool

    @classmethod
    def find(cls, url: str, model: str | None, folder: ModelFolder, max_context: int) -> Server:
        """Ask the server at `url` for `model` (None: the only one there), which must be that in `folder`.

        Raises `ConfigError` if no server answers within `PATIENCE` seconds, or if it serves another model, a shorter
        context, or neither token ids nor logprobs; `CheckpointError` if the checkpoint has no tokenizer.
        """
        client = _Client(url)
        card = _chosen(client, model)
        name = str(card["id"])
        window = card.get("max_model_len")
        if not isinstance(window, int) or window < max_context:
            raise ConfigError(
                f"{url} serves {name} with max_model_len={window}, and limits.context is {max_context}: start it with "
                f"--max-model-len {max_context}, or lower limits.context"
            )
        tokenizer = load_tokenizer(folder.path)
        _check_weights(card, folder, url)
        _check_tokens(client, name, tokenizer, folder.path)
        return cls(url, name, folder.outputs, _probe(client, name, _sample_ids(tokenizer)[:1], folder.outputs))


class _Client:
    """JSON over HTTP. Every failure is a `ConfigError` that names the server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._headers = {"Content-Type": "application/json", **headers()}

    def ask(self, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to `content`, posted (None: to a plain GET)."""
        try:
            status, text = self._send(path, content)
        except (OSError, ValueError, http.client.HTTPException) as error:  # refused, unknown host, timed out, no HTTP
            raise ConfigError(
                f"no server answers at {self.url}{path} ({error}): start one with `{FLAGS}`, wait until it says that it is "
                "up, or correct engine.url"
            ) from error
        if status == 401:
            raise ConfigError(f"{self.url} wants an API key: set the environment variable {API_KEY} to it")
        if status != 200:
            raise ConfigError(
                f"{self.url}{path} answered {status} ({text[:300]}): engine.url must name a server that speaks the "
                f"completions protocol of vLLM, started like `{FLAGS}`"
            )
        try:
            return parsed(text)
        except MalformedError as error:
            raise ConfigError(f"{self.url}{path} does not answer as it should ({error}): correct engine.url") from error

    def ask_if_served(self, path: str, content: dict[str, Any]) -> dict[str, Any] | None:
        """The same, but None where the server refuses."""
        try:
            status, text = self._send(path, content)
            return parsed(text) if status == 200 else None
        except (OSError, ValueError, http.client.HTTPException, MalformedError) as error:
            raise ConfigError(f"{self.url}{path} did not answer ({error}): see the server's log") from error

    def _send(self, path: str, content: dict[str, Any] | None) -> tuple[int, str]:
        """Status and text of an answer that came within `PATIENCE` seconds and has at most `LONGEST` bytes. No proxy and no
        redirect: a request goes to the server that the user named, as those of aiohttp do, which samples."""
        place = urlsplit(self.url)
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        connection = kind(place.netloc, timeout=PATIENCE)
        late = threading.Event()
        try:
            connection.connect()
            timer = threading.Timer(PATIENCE, _hang_up, (connection.sock, late))
            timer.daemon = True
            timer.start()
            try:
                return self._answer(connection, path, content)
            finally:
                timer.cancel()
                if late.is_set():
                    raise TimeoutError(f"its answer was not complete after {PATIENCE:g} s")
        finally:
            connection.close()

    def _answer(
        self, connection: http.client.HTTPConnection, path: str, content: dict[str, Any] | None
    ) -> tuple[int, str]:
        body = None if content is None else json.dumps(content).encode()
        connection.request("GET" if body is None else "POST", path, body, self._headers)
        answer = connection.getresponse()
        text = answer.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise ValueError(f"its answer has more than {LONGEST >> 20} MiB")
        return answer.status, without_key(text.decode(errors="replace"))


def _hang_up(connected: socket.socket, late: threading.Event) -> None:
    """End a connection while another thread reads from it: each byte would start a socket's own timeout anew."""
    late.set()
    connected.shutdown(socket.SHUT_RDWR)


def _chosen(client: _Client, model: str | None) -> dict[str, Any]:
    """The server's entry for `model`, or for the only one that it has."""
    listed = client.ask("/v1/models").get("data")
    entries = listed if isinstance(listed, list) else []
    cards = {str(card["id"]): card for card in entries if isinstance(card, dict) and "id" in card}
    if model is None and len(cards) == 1:
        return next(iter(cards.values()))
    if model not in cards:
        asked = "several" if model is None and cards else f"no {model or 'model'}"
        raise ConfigError(
            f"{client.url} serves {asked}: set engine.model to one of those that it has ({', '.join(cards) or 'none'})"
        )
    found: dict[str, Any] = cards[model]
    return found


def _check_weights(card: dict[str, Any], folder: ModelFolder, url: str) -> None:
    """Where the server reads its model from a folder that is here, too: are they the checkpoint's weights?"""
    root = Path(str(card.get("root") or ""))
    theirs = weight_files(root)
    if theirs and not root.samefile(folder.path) and content_id(theirs) != folder.hash:
        raise ConfigError(
            f"{url} serves the weights of {root}, and `checkpoint` names others, {folder.path}: the results would go by the "
            f"wrong name. Set checkpoint={root}, or serve {folder.path}"
        )


def _check_tokens(client: _Client, model: str, tokenizer: Any, checkpoint: Path) -> None:
    """Does the server's tokenizer make the ids that the checkpoint's makes?"""
    text = tokenizer.decode(_sample_ids(tokenizer), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    asked = {"model": model, "prompt": text, "add_special_tokens": False}
    answer = client.ask_if_served("/tokenize", asked)
    if answer is None:
        print(f"{client.url} has no tokenizer (/tokenize): its vocabulary was not compared", file=sys.stderr)
        return
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    if answer.get("tokens") != expected:
        raise ConfigError(
            f"{client.url} serves {model} with another vocabulary than that of {checkpoint}: token ids would mean other "
            "things there. Serve that very folder, or set `checkpoint` to the one that is served"
        )


def _sample_ids(tokenizer: Any) -> list[int]:
    """Ids from all over the vocabulary, BOS among them and first if there is one."""
    first = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return [*first, *range(0, len(tokenizer), max(1, len(tokenizer) // COMPARED))]


def _probe(client: _Client, model: str, prompt: Sequence[int], vocabulary: int) -> bool:
    """Sample one token in three ways; whether logprobs follow the temperature."""
    base = {"model": model, "prompt": list(prompt), "max_tokens": 1, "logprobs": 1, **NEUTRAL}
    cool = _choice(client, {**base, "temperature": 0.0}, vocabulary)
    warm = _choice(client, {**base, "temperature": 0.5, "seed": 0}, vocabulary)
    token = cool["token_ids"][0]
    stopped = _choice(client, {**base, "temperature": 0.0, "max_tokens": 2, "stop_token_ids": [token]}, vocabulary)
    if (stopped["token_ids"], stopped.get("finish_reason")) != ([token], "stop"):
        raise ConfigError(
            f"{client.url} does not end a completion with the stop token that it sampled (it gave {stopped['token_ids']} for "
            f"the stop id {token}): strands could not be told apart. Use a vLLM whose /v1/completions heeds stop_token_ids"
        )
    return not math.isclose(_top(cool), _top(warm), rel_tol=1e-4, abs_tol=1e-6)


def _choice(client: _Client, content: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    answer = client.ask("/v1/completions", content)
    try:
        (given,) = typed(answer.get("choices"), list, "choices") or [None]
        choice: dict[str, Any] = typed(given, dict, "a choice")
        _, logprobs = tokens(choice, vocabulary)
        if not logprobs:
            raise MalformedError("it sampled nothing")
        _top(choice)
    except (MalformedError, ValueError) as error:
        raise ConfigError(
            f"{client.url} answered without token ids and their logprobs, on which everything rests here ({error}): use a "
            f"server that knows return_token_ids, such as `{FLAGS}`, and serve the model that `checkpoint` names"
        ) from error
    if not all(map(math.isfinite, logprobs)):
        raise CheckpointError(
            f"{client.url} gives logprobs that are not finite: the weights that it serves hold NaN or infinities. Serve an "
            "earlier checkpoint"
        )
    return choice


def _top(choice: dict[str, Any]) -> float:
    """The largest logprob of the first sampled token's distribution."""
    tops = typed(choice["logprobs"].get("top_logprobs") or [{}], list, "top_logprobs")
    values = typed(tops[0] or {}, dict, "top_logprobs").values()
    if not all(type(value) in (int, float) for value in values if value is not None):
        raise MalformedError("top_logprobs holds something else than numbers")
    return max((value for value in values if value is not None), default=0.0)
