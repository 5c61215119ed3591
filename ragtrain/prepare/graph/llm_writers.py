"""What answers prompts about passages: a causal language model here, or a server that speaks OpenAI's protocol."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ragtrain.prepare.chat import Endpoint, Local, Options, Server

if TYPE_CHECKING:
    from ragtrain.config.commands.graph import GraphConfig

#: Texts to prompts, in their order.
Writer = Callable[[Sequence[str]], list[str]]

#: Longest answer in tokens.
ANSWER_TOKENS = 1024
_OPTIONS = Options(address="llm", model="--llm-model", key="--llm-key-variable", timeout="--llm-timeout-s")


@contextlib.contextmanager
def writer_of(settings: GraphConfig, device: str | None) -> Iterator[Writer]:
    """Yield what answers prompts.

    Raises:
        ConfigError: there is no such model.
    """
    name, size = settings.llm or "", settings.llm_batch_size
    if not name.startswith(("http://", "https://")):
        local = Local(name, device)
        yield lambda prompts: [each.text for each in local.ask(prompts, max_tokens=ANSWER_TOKENS, batch_size=size)]
        return
    endpoint = Endpoint(
        name, settings.llm_model, settings.llm_key_variable, settings.llm_timeout_s, ANSWER_TOKENS, _OPTIONS
    )
    server = Server(endpoint)
    with ThreadPoolExecutor(size) as threads:
        try:
            yield lambda prompts: list(threads.map(server.ask, prompts))
        finally:
            server.close()
