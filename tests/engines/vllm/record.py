"""Records what vLLM says to the adapter, and which fields it has, for tests where it is not installed.

    python -m tests.engines.vllm.record        # in an environment with vllm; writes recording.json beside this file

The model is a tiny random one, float32 on the CPU, and comes through the plug-in. The tests replay it through the
adapter, and hold the tokens against the native engine's on the same weights. vLLM's processes import this file again:
what they do without is imported where it is used.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from coldstream.engine.request import Grammar, Request, SamplingParams

RECORDING = Path(__file__).with_name("recording.json")
PROMPT = (2, 70, 101, 109, 260, 104)
REQUESTS: Mapping[str, SamplingParams] = {
    "greedy": SamplingParams(max_tokens=24, ignore_eos=True, logprobs=3, prompt_logprobs=2),
    "stopped by its end": SamplingParams(max_tokens=40, logit_bias=((1, 30.0),)),
    "stop token": SamplingParams(max_tokens=24, ignore_eos=True, stop_token_ids=frozenset(range(150, 270))),
    "stop string": SamplingParams(max_tokens=24, ignore_eos=True, stop=("S", "e")),
    "seeded": SamplingParams(max_tokens=24, ignore_eos=True, temperature=0.9, top_p=0.95, top_k=50, seed=7),
    "penalties": SamplingParams(
        max_tokens=24, ignore_eos=True, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.4
    ),
    "regex": SamplingParams(max_tokens=24, grammar=Grammar("regex", "[ab]{3}c")),
    "choice": SamplingParams(max_tokens=24, grammar=Grammar("choice", ("yes", "no"))),
    "json": SamplingParams(
        max_tokens=60,
        grammar=Grammar(
            "json_schema",
            '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], '
            '"additionalProperties": false}',
        ),
    ),
    "lark": SamplingParams(max_tokens=24, grammar=Grammar("lark", 'start: "x" <turn> "y"')),
}


class Recorder:
    """An AsyncLLM whose outputs are written down."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self.said: dict[str, list[dict[str, Any]]] = {}

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str) -> AsyncGenerator[Any, None]:
        said = self.said[request_id] = []
        async for output in self._llm.generate(prompt, sampling_params, request_id):
            (item,) = output.outputs
            completion = {
                "token_ids": list(item.token_ids),
                "finish_reason": item.finish_reason,
                "stop_reason": item.stop_reason,
                "logprobs": _logprobs(item.logprobs),
            }
            said.append(
                {
                    "completion": completion,
                    "prompt_token_ids": list(output.prompt_token_ids),
                    "num_cached_tokens": output.num_cached_tokens,
                    "prompt_logprobs": _logprobs(output.prompt_logprobs),
                }
            )
            yield output

    @property
    def errored(self) -> bool:
        return bool(self._llm.errored)

    def shutdown(self, timeout: float | None = None) -> None:
        self._llm.shutdown(timeout)


def _logprobs(places: Any) -> Any:
    if places is None:
        return None
    return [
        place and {str(token): [round(item.logprob, 5), item.rank] for token, item in place.items()} for place in places
    ]


def write_checkpoint(folder: Path) -> None:
    """The tiny model that is recorded."""
    from safetensors.torch import save_file

    from coldstream.backends.torch.decoder import Decoder
    from coldstream.model.config import ModelConfig
    from tests.support.parts import LLAMA, random_tensors, tokenizer_files

    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "unk_token": "<pad>"}
    for name, data in tokenizer_files(**plain).items():
        folder.joinpath(name).write_bytes(data)
    folder.joinpath("config.json").write_text(json.dumps({**LLAMA, "dtype": "float32", "eos_token_id": 1}))
    decoder = Decoder(ModelConfig.from_json(LLAMA), precision="float32")
    save_file(random_tensors(decoder, LLAMA), folder / "model.safetensors", metadata={"format": "pt"})


def fields() -> dict[str, list[str]]:
    """The names that vLLM takes: of its sampling parameters, and of the engine's options."""
    import dataclasses

    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import SamplingParams as Theirs
    from vllm.sampling_params import StructuredOutputsParams

    def public(names: Any) -> list[str]:
        return sorted(name for name in names if not name.startswith("_"))

    return {
        "SamplingParams": public(Theirs.__struct_fields__),
        "StructuredOutputsParams": public(item.name for item in dataclasses.fields(StructuredOutputsParams)),
        "AsyncEngineArgs": public(item.name for item in dataclasses.fields(AsyncEngineArgs)),
    }


async def main() -> None:
    """Ask everything, one after the other."""
    import vllm

    from coldstream.engines.vllm.engine import VllmEngine
    from coldstream.loading.loader import load
    from coldstream.settings import EngineSettings, ModelSettings, Settings
    from coldstream.workers.workers import Workers
    from tests.support.parts import Inbox

    with tempfile.TemporaryDirectory() as place:
        write_checkpoint(Path(place))
        model = ModelSettings(
            "tiny", place, engine="vllm", device="cpu", precision="float32", vllm_args=("--enforce-eager",)
        )
        loaded = await load(model, Settings(models={"tiny": model}, engine=EngineSettings(kv_bytes=64 << 20)))
        first = loaded.engine
        assert isinstance(first, VllmEngine)
        recorder = Recorder(first._served.llm)
        engine = VllmEngine(replace(first._served, llm=recorder), loaded.tokenizer, workers=Workers())
        for name, params in REQUESTS.items():
            inbox = Inbox()
            await asyncio.to_thread(engine.submit, Request(name, PROMPT, params), inbox.deliver)
            (last,) = await asyncio.to_thread(inbox.wait, name)
            print(f"{name}: {inbox.text(name)!r} {last.finish_reason} {last.error or ''}")
        loaded.close()
    said = {name: {"outputs": outputs} for name, outputs in recorder.said.items()}
    whole = {"vllm": vllm.__version__, "fields": fields(), "max_context": engine.max_context, "requests": said}
    RECORDING.write_text(json.dumps(whole, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
