"""Prompts to texts: by a causal language model here, or by a server that speaks OpenAI's protocol of chat completions.

The key of a server is read from an environment variable, goes into one header, and into no message, log or file. Redirections are
not followed, since they would carry it elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import threading
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import IO, TYPE_CHECKING, Any

from ragtrain.errors import ConfigError, DataError
from ragtrain.prepare.encoders import resolve_device

if TYPE_CHECKING:
    import email.message
    from collections.abc import Sequence
    from http.client import HTTPMessage

log = logging.getLogger("ragtrain")

#: Times a request is sent before the server counts as out of reach, seconds before the second time (doubled each time) and at most.
TRIES, FIRST_PAUSE_S, LONGEST_PAUSE_S = 6, 1.0, 60.0
#: Answers after which it is worth asking again: too many requests, and what is wrong on the other side.
_PASSING = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
#: Longest body that is read, in bytes: a text of a few thousand tokens is far shorter.
_LONGEST_BODY = 16 * 2**20


class RefusedError(ConfigError):
    """A server that refuses a request for good; ``code`` is its status."""

    def __init__(self, message: str, code: int, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class OutOfReachError(DataError):
    """A server that gave no answer however often it was asked."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the options of a command are called that say which server is meant, for messages."""

    address: str
    model: str
    key: str
    timeout: str


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A server and how it is asked.

    Attributes:
        address: up to ``/v1``, or all of it.
        model: its name at the server.
        key_variable: environment variable that holds the key.
        timeout_s: longest wait for an answer, in seconds.
        max_tokens: longest answer.
        options: what to name in messages.
    """

    address: str
    model: str | None
    key_variable: str
    timeout_s: float
    max_tokens: int
    options: Options


@dataclasses.dataclass(frozen=True)
class Reply:
    """What was answered to a prompt, and the tokens of both; None where a server does not say."""

    text: str
    prompt_tokens: int | None = None
    new_tokens: int | None = None


class Local:
    """A causal language model that answers prompts: in its chat template where it has one, else to the prompt as it is."""

    def __init__(self, name: str, device: str | None) -> None:
        """Load it.

        Raises:
            ConfigError: there is no such model.
            DataError: its files cannot be used.
        """
        from ragtrain.models.causal import load_causal, positions_of

        place = resolve_device(device)
        self._model, self._tokenizer = load_causal(name, device=place)
        self._model.to(place)  # type: ignore[arg-type]
        self._positions = positions_of(self._model)

    def room(self, prompt: str) -> int | None:
        """Return how many tokens can be written after a prompt; None where nothing limits them."""
        return None if self._positions is None else self._positions - len(self._ids(prompt))

    def ask(self, prompts: Sequence[str], *, max_tokens: int, batch_size: int) -> list[Reply]:
        """Return the answers to prompts, in their order.

        Raises:
            ConfigError: a prompt leaves no room for an answer.
            OutOfMemoryError: one prompt alone does not fit on the device.
        """
        from ragtrain.models.generate import generate

        ids = [self._ids(prompt) for prompt in prompts]
        found = generate(self._model, self._tokenizer, ids, max_new_tokens=max_tokens, batch_size=batch_size)
        return [Reply(each.text, len(asked), each.n_tokens) for each, asked in zip(found, ids, strict=True)]

    def _ids(self, prompt: str) -> list[int]:
        if self._tokenizer.chat_template:
            turn = [{"role": "user", "content": prompt}]
            text = str(self._tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self._tokenizer(prompt)["input_ids"])


class Server:
    """A server of chat completions.

    Attributes:
        address: where requests go.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        """Take its address.

        Raises:
            ConfigError: which of its models is meant is not said.
        """
        base = endpoint.address.rstrip("/")
        self.address = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self._endpoint = endpoint
        self._opener = urllib.request.build_opener(_NoRedirection)
        self._closed = threading.Event()
        if endpoint.model is None:
            named = endpoint.options.model
            raise ConfigError(f"{named.strip('-').replace('-', '_')}: which model of {base} is not said",
                              hint=f"name it with {named}")  # fmt: skip

    def close(self) -> None:
        """Send nothing more, so that requests that wait for their next try end."""
        self._closed.set()

    def ask(self, prompt: str) -> str:
        """Return the text of the answer to a prompt; see ``reply``."""
        return self.reply(prompt).text

    def reply(self, prompt: str) -> Reply:
        """Return the answer to a prompt.

        Raises:
            ConfigError: the server refuses the request (``RefusedError``), or the key cannot be sent.
            DataError: it cannot be reached, or answers with something else, again and again (``OutOfReachError``).
        """
        problem, pause = "", 0.0
        for attempt in range(TRIES):
            if self._closed.wait(pause):
                problem = problem or "stopped"
                break
            try:
                with self._opener.open(self._request(prompt), timeout=self._endpoint.timeout_s) as response:
                    return self._read(response.read(_LONGEST_BODY))
            except urllib.error.HTTPError as error:
                body = ""
                with error, contextlib.suppress(OSError, HTTPException):
                    body = error.read(300).decode("utf-8", "replace")
                problem = f"{error.code} {self._without_key(f'{error.reason} {body}')}".strip()
                if error.code not in _PASSING:
                    raise self._refused(error.code, problem) from None
                pause = _pause(attempt, error.headers)
            except (OSError, HTTPException, _NoContentError) as error:  # no connection, none in time, or half an answer
                problem = self._without_key(str(getattr(error, "reason", error)) or type(error).__name__)
                pause = _pause(attempt, None)
            log.info("%s: %s; request %d of %d", self.address, problem, attempt + 1, TRIES)
        raise OutOfReachError(
            f"did not answer {TRIES} requests; the last time: {problem}", path=self.address,
            hint=f"see whether the server runs, or give a longer {self._endpoint.options.timeout}; the same command goes on "
            "where it was",
        )  # fmt: skip

    def _request(self, prompt: str) -> urllib.request.Request:
        body = {
            "model": self._endpoint.model, "messages": [{"role": "user", "content": prompt}],
            "temperature": 0, "max_tokens": self._endpoint.max_tokens,
        }  # fmt: skip
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := self._key():
            if not (key.isascii() and key.isprintable()):  # http.client would show it in its message
                raise ConfigError(f"the key in {self._endpoint.key_variable} holds characters that no header can carry")
            headers["Authorization"] = f"Bearer {key}"
        return urllib.request.Request(self.address, json.dumps(body).encode(), headers, method="POST")

    def _key(self) -> str:
        return os.environ.get(self._endpoint.key_variable, "").strip()

    def _without_key(self, text: str) -> str:
        key = self._key()
        return " ".join((text.replace(key, "[key]") if key else text).split())

    def _refused(self, code: int, problem: str) -> RefusedError:
        options = self._endpoint.options
        if code in (401, 403):
            variable = self._endpoint.key_variable
            hint = f"put the server's key into the environment variable {variable}, or name another with {options.key}"
        elif 300 <= code < 400:
            hint = "give the address that it points to"
        else:
            hint = f"check the address (it ends in /v1 for most servers) and {options.model}"
        return RefusedError(f"{options.address}: {self.address} refuses: {problem}", code, hint=hint)

    def _read(self, body: bytes) -> Reply:
        try:
            document = json.loads(body)
            content = document["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise _NoContentError(
                f"answered with something that is no chat completion ({type(error).__name__})"
            ) from error
        text = content if isinstance(content, str) else ""
        key = self._key()
        if len(key) >= _LONG_KEY:  # a server that repeats it must not bring it into a file
            text = text.replace(key, "[key]")
        usage = document.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return Reply(text, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


#: Letters of a key below which it may be a word of a text, as the keys of servers that check none are.
_LONG_KEY = 12


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


def _count(value: Any) -> int | None:  # noqa: ANN401 - whatever a server sends
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _pause(attempt: int, headers: email.message.Message | None) -> float:
    """Return seconds to wait: what the server says, else twice as long each time."""
    said = headers.get("Retry-After", "") if headers is not None else ""
    seconds = float(said) if said.isascii() and said.replace(".", "", 1).isdigit() else FIRST_PAUSE_S * 2**attempt
    return min(seconds, LONGEST_PAUSE_S)
