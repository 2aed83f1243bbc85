"""Each client library's own loop; run by tests/clients/test_clients.py in the libraries' own environment.

    python loops.py NAME URL

Prints what came of it as one line of JSON. Calls are forced, so that the server's grammar writes them: what a loop does
with a call does not depend on a small model's luck.
"""

# The names of a tool and its argument are what is asserted on; what the model fills in is its own.

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, Literal

MODEL, KEY = "sql", "unused"
QUESTION = "How many users are there?"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Seoul", "Busan"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Weather of a city", "parameters": SCHEMA}}


def by_openai(base: str) -> dict[str, Any]:
    """Chat, stream, a call and its result, parse, responses."""
    from openai import OpenAI
    from pydantic import BaseModel

    class Place(BaseModel):
        city: Literal["Seoul", "Busan"]

    client = OpenAI(base_url=base, api_key=KEY)
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    called = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL], tool_choice="required")
    call = called.choices[0].message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    messages += [called.choices[0].message.model_dump(exclude_none=True), result]
    after = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL], max_tokens=8)
    parsed = client.chat.completions.parse(model=MODEL, messages=messages[:1], response_format=Place)
    with client.chat.completions.stream(model=MODEL, messages=messages[:1], max_tokens=8) as stream:
        events = [event.type for event in stream]
    answered = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=16, store=False)
    return {
        "tool": call.function.name,
        "city": json.loads(call.function.arguments)["city"],
        "after": after.choices[0].finish_reason,
        "parsed": parsed.choices[0].message.parsed.city,
        "streamed": "content.delta" in events,
        "responded": answered.object,
    }


def by_litellm(base: str) -> dict[str, Any]:
    """A call, and a stream put together by its own builder."""
    import litellm

    given: dict[str, Any] = {"model": f"hosted_vllm/{MODEL}", "api_base": base, "api_key": KEY}
    messages = [{"role": "user", "content": QUESTION}]
    called = litellm.completion(**given, messages=messages, tools=[TOOL], tool_choice="required")
    call = called.choices[0].message.tool_calls[0].function
    chunks = list(litellm.completion(**given, messages=messages, max_tokens=8, stream=True))
    whole = litellm.stream_chunk_builder(chunks, messages=messages)
    return {
        "tool": call.name,
        "city": json.loads(call.arguments)["city"],
        "text": bool(whole.choices[0].message.content),
    }


def by_langchain(base: str) -> dict[str, Any]:
    """A bound tool's call, its result sent back, structured output, a stream."""
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=MODEL, base_url=base, api_key=KEY, max_tokens=64)
    called = model.bind_tools([TOOL], tool_choice="required").invoke(QUESTION)
    call = called.tool_calls[0]
    after = model.invoke([HumanMessage(QUESTION), called, ToolMessage("rain", tool_call_id=call["id"])])
    placed = model.with_structured_output({**SCHEMA, "title": "Place"}).invoke(QUESTION)
    streamed = "".join(str(chunk.content) for chunk in model.stream(QUESTION))
    return {
        "tool": call["name"],
        "city": call["args"]["city"],
        "after": isinstance(after.content, str),
        "parsed": placed["city"],
        "streamed": bool(streamed),
    }


def by_llama_index(base: str) -> dict[str, Any]:
    """A predicted call, and a stream."""
    from llama_index.core.llms import ChatMessage
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai_like import OpenAILike
    from pydantic import BaseModel

    class Place(BaseModel):
        city: Literal["Seoul", "Busan"]

    def weather(city: str) -> str:
        """Weather of a city."""
        return f"rain in {city}"

    given: dict[str, Any] = {"is_chat_model": True, "is_function_calling_model": True, "max_tokens": 64}
    model = OpenAILike(model=MODEL, api_base=base, api_key=KEY, **given)
    tool = FunctionTool.from_defaults(weather, fn_schema=Place)
    called = model.predict_and_call([tool], user_msg=QUESTION, tool_required=True)
    streamed = [piece.delta for piece in model.stream_chat([ChatMessage(role="user", content=QUESTION)])]
    return {"said": str(called.response), "streamed": bool("".join(piece or "" for piece in streamed))}


def by_instructor(base: str) -> dict[str, Any]:
    """A model of pydantic's by a tool, and by a JSON schema."""
    import instructor
    from openai import OpenAI
    from pydantic import BaseModel, ConfigDict

    class Place(BaseModel):
        model_config = ConfigDict(extra="forbid")  # else the schema lets a small model go on with keys of its own
        city: Literal["Seoul", "Busan"]

    found = {}
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(OpenAI(base_url=base, api_key=KEY), mode=mode)
        messages = [{"role": "user", "content": QUESTION}]
        found[mode.name] = client.create(
            model=MODEL, messages=messages, response_model=Place, max_retries=0, temperature=0
        ).city
    return found


def by_pydantic_ai(base: str) -> dict[str, Any]:
    """An agent whose answer is a model, which it is given by a call."""
    from pydantic import BaseModel
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class Place(BaseModel):
        city: Literal["Seoul", "Busan"]

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=base, api_key=KEY))
    ran = Agent(model, output_type=Place).run_sync(QUESTION)
    return {
        "city": ran.output.city,
        "requests": ran.usage.requests if not callable(ran.usage) else ran.usage().requests,
    }


def by_openai_agents(base: str) -> dict[str, Any]:
    """An agent that calls its tool once, and then answers."""
    from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool
    from openai import AsyncOpenAI

    called = []

    @function_tool
    def weather(city: Literal["Seoul", "Busan"]) -> str:
        """Weather of a city."""
        called.append(city)
        return "rain"

    model = OpenAIChatCompletionsModel(MODEL, AsyncOpenAI(base_url=base, api_key=KEY))
    settings = ModelSettings(tool_choice="required", max_tokens=64)
    agent = Agent("helper", instructions="Help.", model=model, tools=[weather], model_settings=settings)
    ran = Runner.run_sync(agent, QUESTION, max_turns=3)
    return {"called": called, "answered": isinstance(ran.final_output, str)}


def by_lm_eval(base: str) -> dict[str, Any]:
    """Answers over /v1/chat/completions, as its harness asks for them; scores would need transformers' tokenizer."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion

    given: dict[str, Any] = {"tokenizer_backend": None, "tokenized_requests": False, "num_concurrent": 1}
    model = LocalChatCompletion(model=MODEL, base_url=f"{base}/chat/completions", **given)
    chat = model.apply_chat_template([{"role": "user", "content": QUESTION}])
    asked = Instance("generate_until", {}, (chat, {"until": [";"], "max_gen_toks": 16, "do_sample": False}), 0)
    (answer,) = model.generate_until([asked])
    return {"answer": answer}


LOOPS: dict[str, Callable[[str], dict[str, Any]]] = {
    "openai": by_openai,
    "litellm": by_litellm,
    "langchain": by_langchain,
    "llama-index": by_llama_index,
    "instructor": by_instructor,
    "pydantic-ai": by_pydantic_ai,
    "openai-agents": by_openai_agents,
    "lm-eval": by_lm_eval,
}

if __name__ == "__main__":
    print(json.dumps(LOOPS[sys.argv[1]](sys.argv[2])))
