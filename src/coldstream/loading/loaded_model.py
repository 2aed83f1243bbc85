"""What a load ends in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coldstream.loading.closing import Closing
from coldstream.loading.run_plan import RunPlan

if TYPE_CHECKING:
    from coldstream.engine.tokenizer.tokenizer import Tokenizer
    from coldstream.engine.vision.prompt import ImagePrompt
    from coldstream.engines.protocol import EngineProtocol
    from coldstream.engines.vllm.images import MarkedImages


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model whose engine takes requests. `images`: how they stand in its prompts; None where it takes text only.

    `revision` changes with the checkpoint's objects. It is for the owner to `close`.
    """

    name: str
    uri: str
    revision: str
    plan: RunPlan
    tokenizer: Tokenizer
    engine: EngineProtocol
    images: ImagePrompt | MarkedImages | None
    closing: Closing = field(repr=False)

    @property
    def max_context(self) -> int:
        """Prompt and answer together, in tokens."""
        return self.engine.max_context

    def close(self) -> None:
        """Stop the engine and end the tokenizer's process; the model may not be used afterwards."""
        self.closing.close()
