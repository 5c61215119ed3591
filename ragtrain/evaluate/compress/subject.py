"""A network with everything that asks it questions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from ragtrain.data.compress.prompts import CompressPrompter
    from ragtrain.data.compress.windows import Windower
    from ragtrain.models.compress.model import CompressModel


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        model: the network, on its device; it is left as it was.
        tokenizer: of the generator.
        windower: passages → windows, with the compressor's tokenizer.
        prompter: questions with text, memory or nothing → prompts.
        full_adapters: folder of the adapters that were trained on full passages (``save_adapters``); None where there are none.
    """

    model: CompressModel
    tokenizer: PreTrainedTokenizerBase
    windower: Windower
    prompter: CompressPrompter
    full_adapters: Path | None = None
