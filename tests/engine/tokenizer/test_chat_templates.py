"""Which chat template is taken, and that no text of a message is lost on the way into the prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.engine.tokenizer.chat_templates import ChatTemplates
from coldstream.engine.tokenizer.template_files import read_templates
from coldstream.errors import InvalidRequest, TokenizerError
from tests.support.parts import tokenizer_json

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
WITH_TOOLS = "{{ tools | length }} tools:" + PLAIN
BELOW = "additional_chat_templates/"


def written(files: Mapping[str, str], config: Mapping[str, Any], tools: Any) -> str:
    texts = read_templates({name: text.encode() for name, text in files.items()}, config, "gs://b/m")
    return render(ChatTemplates(texts, source="gs://b/m"), [{"role": "user", "content": "hi"}], tools)


def render(templates: ChatTemplates, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str:
    return templates.render(messages, add_generation_prompt=True, tools=tools, special={}, variables={})


def one(text: str, **more: Any) -> ChatTemplates:
    return ChatTemplates({"default": text}, source="gs://b/m", **more)


def named(**texts: str) -> list[dict[str, str]]:
    return [{"name": name, "template": text} for name, text in texts.items()]


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize(
    ("files", "config"),
    [
        ({}, {"chat_template": PLAIN}),
        ({}, {"chat_template": named(default=PLAIN, tool_use=WITH_TOOLS)}),
        ({}, {"chat_template": named(tool_use=WITH_TOOLS, default=PLAIN, rag="{{ 1 }}")}),
        ({"chat_template.jinja": "J" + PLAIN}, {"chat_template": named(default=PLAIN, tool_use=WITH_TOOLS)}),
        ({"chat_template.jinja": "J" + PLAIN, BELOW + "tool_use.jinja": WITH_TOOLS}, {"chat_template": PLAIN}),
    ],
)
def test_the_template_is_the_one_that_transformers_takes(
    files: dict[str, str], config: dict[str, Any], tools: Any, tmp_path: Path
) -> None:
    (tmp_path / BELOW).mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "hi"}]
    expected = theirs.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    assert written(files, config, tools) == expected


def test_a_template_for_tools_alone_serves_requests_with_tools_and_no_others() -> None:
    config = {"chat_template": named(rag=PLAIN, tool_use=WITH_TOOLS)}
    assert written({}, config, TOOLS) == "1 tools:[user]hi"
    with pytest.raises(InvalidRequest, match=r"rag, tool_use.*default"):
        written({}, config, None)


def test_whether_tools_are_known_is_asked_of_the_template_that_gets_them() -> None:
    assert ChatTemplates({"default": PLAIN, "tool_use": WITH_TOOLS}, source="x").uses_tools
    assert not ChatTemplates({"default": PLAIN}, source="x").uses_tools
    assert not ChatTemplates({}, source="x").uses_tools


@pytest.mark.parametrize("value", [7, [{"name": "default"}], ["x"], {"default": 3}])
def test_a_template_that_is_no_text_is_named(value: Any) -> None:
    with pytest.raises(TokenizerError, match=r"gs://b/m/tokenizer_config.json: chat_template"):
        read_templates({}, {"chat_template": value}, "gs://b/m")


PARTS = {
    "loops": "{% for m in messages %}[{{ m.role }}]{% for c in m.content %}{% if c['type'] == 'text' %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}",
    "first": "{% for m in messages %}[{{ m.role }}]{{ m['content'][0]['text'] }}{% endfor %}",
    "first, trimmed": "{% for m in messages %}[{{ m.role }}]{{ m['content'][0]['text'] | trim }}{% endfor %}",
    "strict": "{% for m in messages %}[{{ m.role }}]{{ m.content[0]['text'] + '' }}{% endfor %}",
    "either": "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}{% endfor %}",
    "users only": "{% for m in messages %}[{{ m.role }}]{% if m.role == 'user' %}{{ m.content[0].text }}{% else %}"
    "{{ m.content }}{% endif %}{% endfor %}",
    "text": PLAIN,
}


@pytest.mark.parametrize("form", PARTS)
def test_content_comes_in_the_form_that_the_template_reads(form: str) -> None:
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "bye"},
    ]
    assert render(one(PARTS[form]), messages) == "[system]be kind[user]hello there[assistant]hi[user]bye"


def test_a_message_that_leaves_no_trace_is_an_error_that_says_which() -> None:
    deaf = one("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    with pytest.raises(InvalidRequest, match=r"message 1 \(tool\)"):
        render(deaf, [{"role": "user", "content": "a"}, {"role": "tool", "content": "a"}])
    first = one("{{ messages[0].content }}")
    with pytest.raises(InvalidRequest, match=r"message 1 \(user\)"):
        render(first, [{"role": "user", "content": "same"}, {"role": "user", "content": "same"}])


def test_a_text_beside_an_image_that_the_template_does_not_read_is_an_error() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    with pytest.raises(InvalidRequest, match="leaves out"):
        render(one(PARTS["first"]), [{"role": "user", "content": content}])
    with pytest.raises(InvalidRequest, match="leaves out"):  # written out as Python would
        render(one("{{ messages[0].content }}"), [{"role": "user", "content": content}])


HARMLESS = {
    "trims": "{{ messages[0].content | trim }}",
    "folds whitespace": "{{ messages[0].content.split() | join(' ') }}",
    "shouts": "{{ messages[0].content | upper }}",
    "strips thoughts": "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}",
    "writes JSON": "{{ messages | tojson(ensure_ascii=True) }}",
    "lets answers go": "{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}",
}


@pytest.mark.parametrize("kind", HARMLESS)
@settings(deadline=None, max_examples=25)
@given(text=st.text(st.sampled_from("ab <>/think\n\t 안{%"), max_size=12))
def test_no_template_that_writes_every_text_is_suspected(kind: str, text: str) -> None:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "<think>x</think>"}]
    render(one(HARMLESS[kind]), messages)


def test_what_the_template_says_of_messages_is_still_heard() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        render(one("{{ raise_exception('roles must alternate') }}"), [{"role": "user", "content": "x"}])
