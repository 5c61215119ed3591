"""Prompts to texts: by a causal language model here, or by a server that speaks OpenAI's protocol of chat completions.

The key of a server is read from an environment variable, goes into one header, and into no message, log or file. Redirections are
not followed, since they would carry it elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING

from ragtrain.errors import ConfigError, DataError
from ragtrain.prepare.encoders import resolve_device

if TYPE_CHECKING:
    import email.message
    from http.client import HTTPMessage

    from ragtrain.config.commands.graph import GraphConfig

log = logging.getLogger("ragtrain")

#: Texts to prompts, in their order.
Writer = Callable[[Sequence[str]], list[str]]

#: Longest answer in tokens.
ANSWER_TOKENS = 1024
#: Times a request is sent before the server counts as out of reach, seconds before the second time (doubled each time) and at most.
TRIES, FIRST_PAUSE_S, LONGEST_PAUSE_S = 6, 1.0, 60.0
#: Answers after which it is worth asking again: too many requests, and what is wrong on the other side.
_PASSING = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))


@contextlib.contextmanager
def writer_of(settings: GraphConfig, device: str | None) -> Iterator[Writer]:
    """Yield what answers prompts.

    Raises:
        ConfigError: there is no such model.
    """
    name = settings.llm or ""
    if name.startswith(("http://", "https://")):
        server = Server(settings)
        with ThreadPoolExecutor(settings.llm_batch_size) as threads:
            yield lambda prompts: list(threads.map(server.ask, prompts))
        return
    yield local_writer(name, settings.llm_batch_size, device)


def local_writer(name: str, batch_size: int, device: str | None) -> Writer:
    """Return a causal language model as a writer: its chat template where it has one, else the prompt as it is."""
    from ragtrain.models.causal import load_causal
    from ragtrain.models.generate import generate

    place = resolve_device(device)
    model, tokenizer = load_causal(name, device=place)
    model.to(place)  # type: ignore[arg-type]

    def ids(prompt: str) -> list[int]:
        if tokenizer.chat_template:
            turn = [{"role": "user", "content": prompt}]
            text = str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(tokenizer(prompt)["input_ids"])

    def write(prompts: Sequence[str]) -> list[str]:
        found = generate(
            model, tokenizer, [ids(p) for p in prompts], max_new_tokens=ANSWER_TOKENS, batch_size=batch_size
        )
        return [each.text for each in found]

    return write


class Server:
    """A server of chat completions.

    Attributes:
        address: where requests go.
    """

    def __init__(self, settings: GraphConfig) -> None:
        base = (settings.llm or "").rstrip("/")
        self.address = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self._settings = settings
        self._opener = urllib.request.build_opener(_NoRedirection)
        if settings.llm_model is None:
            raise ConfigError(f"llm_model: which model of {base} is not said", hint="name it with --llm-model")

    def ask(self, prompt: str) -> str:
        """Return the answer to a prompt.

        Raises:
            ConfigError: the server refuses the request.
            DataError: it cannot be reached, or answers with something else, again and again.
        """
        problem, pause = "", 0.0
        for attempt in range(TRIES):
            time.sleep(pause)
            try:
                with self._opener.open(self._request(prompt), timeout=self._settings.llm_timeout_s) as response:
                    return _content(response.read())
            except urllib.error.HTTPError as error:
                with error:
                    body = error.read(300).decode("utf-8", "replace")
                problem = f"{error.code} {error.reason} {self._without_key(body)}".strip()
                if error.code not in _PASSING:
                    raise self._refused(error.code, problem) from None
                pause = _pause(attempt, error.headers)
            except (OSError, _NoContentError) as error:  # no connection, or none in time
                problem = self._without_key(str(getattr(error, "reason", error)) or type(error).__name__)
                pause = _pause(attempt, None)
            log.info("%s: %s; request %d of %d", self.address, problem, attempt + 1, TRIES)
        raise DataError(
            f"did not answer {TRIES} requests; the last time: {problem}", path=self.address,
            hint="see whether the server runs, or give a longer --llm-timeout-s; the same command goes on where it was",
        )  # fmt: skip

    def _request(self, prompt: str) -> urllib.request.Request:
        body = {
            "model": self._settings.llm_model, "messages": [{"role": "user", "content": prompt}],
            "temperature": 0, "max_tokens": ANSWER_TOKENS,
        }  # fmt: skip
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        return urllib.request.Request(self.address, json.dumps(body).encode(), headers, method="POST")

    def _key(self) -> str:
        return os.environ.get(self._settings.llm_key_variable, "").strip()

    def _without_key(self, text: str) -> str:
        key = self._key()
        return " ".join((text.replace(key, "[key]") if key else text).split())

    def _refused(self, code: int, problem: str) -> ConfigError:
        if code in (401, 403):
            variable = self._settings.llm_key_variable
            hint = f"put the server's key into the environment variable {variable}, or name another with --llm-key-variable"
        elif 300 <= code < 400:
            hint = "give the address that it points to"
        else:
            hint = "check the address (it ends in /v1 for most servers) and --llm-model"
        return ConfigError(f"llm: {self.address} refuses: {problem}", hint=hint)


class _NoContentError(Exception):
    """An answer that is no chat completion."""


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        """Follow no redirection: its target would get the key."""


def _content(body: bytes) -> str:
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _NoContentError(f"answered with something that is no chat completion ({type(error).__name__})") from error
    return content if isinstance(content, str) else ""


def _pause(attempt: int, headers: email.message.Message | None) -> float:
    """Return seconds to wait: what the server says, else twice as long each time."""
    said = headers.get("Retry-After", "") if headers is not None else ""
    seconds = float(said) if said.replace(".", "", 1).isdigit() else FIRST_PAUSE_S * 2**attempt
    return min(seconds, LONGEST_PAUSE_S)
