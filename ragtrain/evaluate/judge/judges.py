"""Who judges: a causal language model here, or one at a server that speaks OpenAI's protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from ragtrain.errors import ConfigError
from ragtrain.models.causal_config import source_of
from ragtrain.prepare.chat import Endpoint, Local, Options, OutOfReachError, RefusedError, Reply, Server
from ragtrain.records import sha256_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ragtrain.config.commands import EvalConfig

_OPTIONS = Options(address="judge_endpoint", model="--judge", key="--judge-key-variable", timeout="--judge-timeout-s")
#: Refusals of one prompt (malformed, too long, not to be answered), which say nothing of others.
_OF_A_PROMPT = frozenset((400, 413, 422))
_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")


@dataclasses.dataclass(frozen=True)
class Failed:
    """No reply to a prompt.

    Attributes:
        kind: ``no reply``, ``refused`` or ``too long``.
        problem: what was said of it.
    """

    kind: str
    problem: str


class Ask(Protocol):
    """Prompts to replies, in their order."""

    def __call__(self, prompts: Sequence[str]) -> list[Reply | Failed]:
        """Ask."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """Who is asked, and what ``judge.json`` says of it.

    Attributes:
        model: folder, hub id, or name at the server.
        endpoint: the server, where there is one.
        max_new_tokens: longest reply.
        batch_size: prompts at a time.
        device: of a model here.
    """

    model: str
    endpoint: Endpoint | None
    max_new_tokens: int
    batch_size: int
    device: str | None

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """Of a model's files, base and adapters, 16 hexadecimal digits; None of a server's, which nobody here can see."""
        return None if self.endpoint is not None else _fingerprint(self.model)

    @property
    def identity(self) -> str:
        """What replies depend on beside the prompt."""
        who = [self.fingerprint] if self.endpoint is None else [self.endpoint.address, self.model]
        return json.dumps([*who, self.max_new_tokens])

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "model": self.model,
            "endpoint": None if self.endpoint is None else self.endpoint.address,
            "fingerprint": self.fingerprint,
            "max_new_tokens": self.max_new_tokens,
            "temperature": 0,
        }

    @contextlib.contextmanager
    def asking(self) -> Iterator[Ask]:
        """Yield what asks it; a model is loaded now.

        Raises:
            ConfigError: there is no such model.
        """
        if self.endpoint is None:
            yield self._local()
            return
        server = Server(self.endpoint)
        with ThreadPoolExecutor(self.batch_size) as threads:
            try:
                yield lambda prompts: list(threads.map(lambda prompt: _sent(server, prompt), prompts))
            finally:
                server.close()

    def _local(self) -> Ask:
        model = Local(self.model, self.device)

        def ask(prompts: Sequence[str]) -> list[Reply | Failed]:
            found: list[Reply | Failed | None] = [None] * len(prompts)
            fitting = []
            for place, prompt in enumerate(prompts):
                room = model.room(prompt)
                if room is not None and room < self.max_new_tokens:
                    found[place] = Failed("too long", f"a prompt leaves {max(room, 0)} tokens for the reply")
                else:
                    fitting.append(place)
            texts = [prompts[place] for place in fitting]
            replies = model.ask(texts, max_tokens=self.max_new_tokens, batch_size=self.batch_size) if texts else []
            for place, reply in zip(fitting, replies, strict=True):
                found[place] = reply
            return [each for each in found if each is not None]

        return ask


def _sent(server: Server, prompt: str) -> Reply | Failed:
    """Return the reply of a server, or why there is none.

    Raises:
        ConfigError: it refuses whatever it is asked.
    """
    try:
        return server.reply(prompt)
    except OutOfReachError as error:
        return Failed("no reply", error.message)
    except RefusedError as error:
        if error.code not in _OF_A_PROMPT:
            raise
        return Failed("refused", error.message)


def judge_of(config: EvalConfig) -> Judge:
    """Return the judge of a configuration; nothing is loaded and nobody is asked.

    Raises:
        ConfigError: it is not said which, there is no such model, or the address holds what belongs elsewhere.
    """
    if config.judge is None:
        raise ConfigError("judge: which model judges is not said", hint="give --judge MODEL")
    if config.judge_endpoint is None:
        source_of(config.judge)  # whether there is one
        return Judge(config.judge, None, config.judge_max_new_tokens, config.batch_size, config.device)
    address = config.judge_endpoint.rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("judge_endpoint: no http(s) address", hint="give one such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "judge_endpoint: the address is written into results, so it must hold no user, password or parameters",
            hint=f"put the key into the environment variable {config.judge_key_variable}",
        )
    endpoint = Endpoint(
        address, config.judge, config.judge_key_variable, config.judge_timeout_s, config.judge_max_new_tokens, _OPTIONS
    )
    return Judge(config.judge, endpoint, config.judge_max_new_tokens, config.batch_size, config.device)


def _fingerprint(name: str) -> str:
    source = source_of(name)
    folders = [source.folder, source.tokenizer, *([] if source.adapter is None else [source.adapter])]
    parts = [_hashes(folder) for folder in folders]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _hashes(folder: Path) -> dict[str, str]:
    found = {path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()}
    return {path.name: sha256_file(path) for path in sorted(found)}
