"""What transformers computes, asked as our engine is: greedy, so many tokens, whatever the model would end with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def greedy(model: Any, ids: Tensor, tokens: int, **more: Any) -> Any:
    """`model.generate` of `ids`, `[sequences, tokens]`; `more` are further arguments of it."""
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **more,
    )
