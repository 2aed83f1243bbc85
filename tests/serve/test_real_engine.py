"""The whole room on the real engine: a small random decoder, a real tokenizer, OpenAI's own client."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from coldstream.engine.sampling import from_generation_config
from coldstream.model.config import ModelConfig
from coldstream.settings import ModelSettings, Settings, TaskSettings
from tests.support.parts import EOS, GEMMA, VOCAB, WORDS, make_decoder, make_engine, make_tokenizer

HI = [{"role": "user", "content": "ab the b"}]


class RealModel:
    """A served model around a real engine."""

    name, uri, created, revision, is_ready, images = "default", "gs://b/m", 0, "r1", True, None

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()
        self.defaults = from_generation_config({**self.tokenizer.generation_defaults, "max_new_tokens": 24})
        self.engine = make_engine(make_decoder(GEMMA), ModelConfig.from_json(GEMMA))
        self.engine.start()
        self.max_context = self.engine.max_context

    async def ready(self) -> None:
        """It is."""

    def retry_after(self) -> float:
        return 1.0


@pytest.fixture
async def asked(serve):
    model = RealModel()
    served = await serve(model)
    client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    yield served, client, model
    await client.close()
    await asyncio.to_thread(model.engine.stop)


async def test_the_text_is_the_same_alone_streamed_in_a_crowd_and_over_each_route(asked) -> None:
    served, client, _ = asked
    body = {"prompt": "ab the b", "ignored": None}
    body.pop("ignored")
    alone = (await served.client.post("/generate", json=body)).json()
    crowd = await asyncio.gather(*(served.client.post("/generate", json=body) for _ in range(6)))
    assert {reply.json() for reply in crowd} == {alone}
    stream = await client.chat.completions.create(model="default", messages=HI, max_tokens=24, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == alone
    assert len(alone) > 5


async def test_a_seed_gives_the_same_samples_again_and_each_sample_its_own(asked) -> None:
    _, client, _ = asked
    wanted = {"model": "default", "messages": HI, "temperature": 1.5, "n": 3, "seed": 11, "max_tokens": 16}
    first = await client.chat.completions.create(**wanted)
    second = await client.chat.completions.create(**wanted)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) == 3


async def test_scoring_a_text_gives_the_probabilities_with_which_it_was_drawn(asked) -> None:
    """lm-eval's loglikelihood: prompt as ids, echo, logprobs, one token."""
    _, client, model = asked
    ids = model.tokenizer.encode("ab the b")
    bias = {str(VOCAB[word]): 100 for word in WORDS}  # texts that no byte has, so that they say which token it was
    wanted = {"model": "default", "max_tokens": 8, "logprobs": 1, "logit_bias": bias}
    drawn = (await client.completions.create(prompt=ids, **wanted)).choices[0].logprobs
    by_text = {model.tokenizer.token_text(VOCAB[word]): VOCAB[word] for word in WORDS}
    whole = ids + [by_text[token] for token in drawn.tokens]
    scored = await client.completions.create(model="default", prompt=whole, max_tokens=1, echo=True, logprobs=1)
    found = scored.choices[0].logprobs
    assert len(found.tokens) == len(found.text_offset) == len(whole) + 1
    assert found.token_logprobs[0] is None
    assert found.token_logprobs[len(ids) : -1] == pytest.approx(drawn.token_logprobs, abs=1e-3)
    assert scored.choices[0].text.startswith("ab the b" + "".join(drawn.tokens))


async def test_a_bias_decides_what_is_drawn(asked) -> None:
    _, client, _ = asked
    bias = {str(VOCAB["c"]): 100}
    answer = await client.chat.completions.create(model="default", messages=HI, logit_bias=bias, max_tokens=4)
    assert answer.choices[0].message.content == "cccc"


@pytest.mark.parametrize(
    ("wanted", "end"),
    [
        ({}, ("stop", 1)),
        ({"ignore_eos": True}, ("length", 12)),
        ({"ignore_eos": True, "stop_token_ids": [EOS]}, ("stop", 1)),
    ],
)
async def test_an_eos_that_is_drawn_ends_the_text_unless_it_is_to_be_ignored(asked, wanted, end) -> None:
    _, client, _ = asked
    body = {"model": "default", "max_tokens": 12, "logit_bias": {str(EOS): 100}}
    chat = await client.chat.completions.create(**body, messages=HI, extra_body=wanted)
    text = await client.completions.create(**body, prompt="ab the b", extra_body=wanted)
    for answer in (chat, text):
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == end


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


async def test_the_output_obeys_a_schema_a_regex_and_a_choice(asked) -> None:
    _, client, _ = asked

    async def text(**wanted) -> str:
        answer = await client.chat.completions.create(model="default", messages=HI, max_tokens=200, **wanted)
        return answer.choices[0].message.content

    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    bias = {str(VOCAB[f"<0x{ord(digit):02X}>"]): -50 for digit in "0123456789"}  # else a random model counts for ever
    value = json.loads(await text(response_format=schema, logit_bias=bias))
    assert (isinstance(value["a"], int), value["b"] in ("x", "y"), set(value)) == (True, True, {"a", "b"})
    assert (await text(extra_body={"structured_outputs": {"regex": "[0-9]{3}-(a|b)"}}))[3] == "-"
    assert await text(extra_body={"structured_outputs": {"choice": ["서울", "Oslo"]}}) in ("서울", "Oslo")


async def test_a_forced_call_has_arguments_that_its_schema_accepts(asked) -> None:
    _, client, _ = asked
    parameters = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    function = {"name": "weather", "parameters": parameters | {"additionalProperties": False}}
    answer = await client.chat.completions.create(
        model="default",
        messages=HI,
        max_tokens=450,
        tools=[{"type": "function", "function": function}],
        tool_choice="required",
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")


async def test_a_grammar_that_cannot_be_followed_is_a_400_that_names_its_field(asked) -> None:
    _, client, _ = asked
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            model="default", messages=HI, extra_body={"structured_outputs": {"regex": "(unclosed"}}
        )
    assert caught.value.param == "structured_outputs"


async def test_a_client_that_leaves_a_stream_leaves_no_work_behind(asked) -> None:
    _, client, model = asked
    wanted = {"model": "default", "messages": HI, "max_tokens": 450, "extra_body": {"ignore_eos": True}}
    stream = await client.chat.completions.create(**wanted, stream=True)
    await anext(aiter(stream))
    await stream.close()
    for _ in range(1000):
        if not (model.engine.stats().running or model.engine.stats().waiting):
            break
        await asyncio.sleep(0.005)
    assert (model.engine.stats().running, model.engine.stats().waiting) == (0, 0)
    assert model.engine.stats().completion_tokens < 450


async def test_the_engines_own_figures_are_in_the_metrics(asked) -> None:
    served, _, _ = asked
    await served.client.post("/generate", json={"prompt": "ab"})
    text = (await served.client.get("/metrics")).text
    for name in ("blocks_total", "prefix_hit_rate", "running", "batch_size"):
        assert f'coldstream_engine_{name}{{model="default"}}' in text


TEMPLATE = TaskSettings("long", "default", system="the ab b a " * 14, prompt="{prompt}")
"""Five blocks of tokens before the first word of a question."""


async def test_a_tasks_second_request_computes_nothing_of_its_template_but_the_last_block(serve) -> None:
    model = RealModel()
    try:
        served = await serve(model, Settings({"default": ModelSettings("default", "gs://b/m")}, {"long": TEMPLATE}))
        for question in ("b", "ab the b", "a the"):
            before = await _counts(served)
            reply = await served.client.post("/generate", json={"type": "long", "prompt": question})
            assert reply.status_code == 200
            asked, cached, computed = (now - then for now, then in zip(await _counts(served), before, strict=True))
            template = asked - len(model.tokenizer.encode(question))
            assert asked == cached + computed
            if question == "b":
                assert cached == 0
            else:
                assert template > 5 * 32
                assert computed < 2 * 32, "its own words, and the block in which they begin"
    finally:
        await asyncio.to_thread(model.engine.stop)


async def _counts(served) -> tuple[float, float, float]:
    """Prompt tokens that were asked for, that came from the cache, and that the model computed."""
    lines = (await served.client.get("/metrics")).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    names = (
        'coldstream_tokens_total{kind="prompt",model="default"}',
        'coldstream_tokens_total{kind="cached",model="default"}',
        'coldstream_engine_prompt_tokens{model="default"}',
    )
    return tuple(float(values.get(name, 0)) for name in names)
