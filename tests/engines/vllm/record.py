"""Records what vLLM says to the adapter, and which fields it has, for tests where it is not installed.

    python -m tests.engines.vllm.record        # in an environment with vllm; writes recording.json beside this file

The model is a tiny random one, float32 on the CPU, and comes through the plug-in. The tests replay it through the
adapter, and hold the tokens against the native engine's on the same weights.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from coldstream.engine.request import Grammar, Request, SamplingParams

RECORDING = Path(__file__).with_name("recording.json")
CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 269,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "tie_word_embeddings": False,
}
"""vLLM's attention on a CPU has heads of 32 and more."""
PROMPT = (2, 70, 101, 109, 260, 104)
REQUESTS: Mapping[str, SamplingParams] = {
    "greedy": SamplingParams(max_tokens=24, ignore_eos=True, logprobs=3, prompt_logprobs=2),
    "stopped by its end": SamplingParams(max_tokens=40, logit_bias=((1, 30.0),)),
    "stop token": SamplingParams(max_tokens=24, ignore_eos=True, stop_token_ids=frozenset(range(150, 260))),
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
    """vLLM's engine in this process, behind AsyncLLM's method, whose outputs are written down.

    Its outputs are made by the same code as AsyncLLM's, without the three processes that this machine has to start.
    """

    errored = False

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.said: dict[str, list[dict[str, Any]]] = {}

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str) -> AsyncGenerator[Any, None]:
        """One request at a time; one that is given up is aborted."""
        self._engine.add_request(request_id, prompt, sampling_params)
        said = self.said[request_id] = []
        try:
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    said.append(written(output))
                    yield output
        finally:
            self._engine.abort_request([request_id])

    def shutdown(self, timeout: float | None = None) -> None:
        """It ends with this process."""


def written(output: Any) -> dict[str, Any]:
    """What the adapter reads of a RequestOutput."""
    (item,) = output.outputs
    completion = {
        "token_ids": list(item.token_ids),
        "finish_reason": item.finish_reason,
        "stop_reason": item.stop_reason,
        "logprobs": _logprobs(item.logprobs),
    }
    return {
        "completion": completion,
        "prompt_token_ids": list(output.prompt_token_ids),
        "num_cached_tokens": output.num_cached_tokens,
        "prompt_logprobs": _logprobs(output.prompt_logprobs),
    }


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
    from tests.support.parts import random_tensors, tokenizer_files

    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "unk_token": "<pad>"}
    for name, data in tokenizer_files(**plain).items():
        folder.joinpath(name).write_bytes(data)
    folder.joinpath("config.json").write_text(json.dumps({**CONFIG, "dtype": "float32", "eos_token_id": 1}))
    decoder = Decoder(ModelConfig.from_json(CONFIG), precision="float32")
    save_file(random_tensors(decoder, CONFIG), folder / "model.safetensors", metadata={"format": "pt"})


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


def main() -> None:
    """Ask everything, one after the other."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import vllm
    from vllm.v1.engine.llm_engine import LLMEngine

    from coldstream.engines.vllm.launch import Launch, engine_arguments, sampling_parameters
    from coldstream.settings import EngineSettings, ModelSettings
    from tests.support.async_llm import serve
    from tests.support.parts import VOCAB, Inbox, make_tokenizer

    with tempfile.TemporaryDirectory() as place:
        write_checkpoint(Path(place))
        options = ("--enforce-eager", "--distributed-executor-backend", "uni")
        model = ModelSettings("tiny", place, device="cpu", precision="float32", vllm_args=options)
        wanted = Launch(Path(place), model, EngineSettings(kv_bytes=64 << 20), "cpu", max_positions=512)
        recorder = Recorder(LLMEngine.from_engine_args(engine_arguments(wanted)))
    engine = serve(recorder, make_tokenizer(), vocab_size=len(VOCAB), max_context=512, parameters=sampling_parameters)
    for name, params in REQUESTS.items():
        inbox = Inbox()
        engine.submit(Request(name, PROMPT, params), inbox.deliver)
        (last,) = inbox.wait(name, timeout=300)
        print(f"{name}: {inbox.text(name)!r} {last.finish_reason} {last.error or ''}", flush=True)
    engine.stop()
    said = {name: {"outputs": outputs} for name, outputs in recorder.said.items()}
    whole = {"vllm": vllm.__version__, "fields": fields(), "max_context": engine.max_context, "requests": said}
    RECORDING.write_text(json.dumps(whole, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
