"""Answers that are strangers' words: formatted, never obeyed. And a chat that outlives its page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Locator, Page, expect

from coldstream.engine.request import Request
from tests.browser.conftest import Open, Watch
from tests.browser.paced import Paced
from tests.browser.test_looks import faults

MARKDOWN = """# Title

Some **bold** words, a `code span` and a [link](https://example.com/a).
Second line &amp; more.

1. one
2. two
   - nested

| a | b |
|---|---|
| 1 | 2 |

```sql
SELECT a*b, c*d FROM t;
```

> quoted <b>html</b>
"""
ATTACKS = (
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "<svg/onload=window.hit=1>",
    "<iframe srcdoc='<script>parent.hit=1</script>'></iframe>",
    "[a](javascript:window.hit=1)",
    "[a](JaVa&#115;cript:window.hit=1)",
    "[a](&#106;avascript:window.hit=1)",
    "[a](data:text/html,<script>window.hit=1</script>)",
    "[a](vbscript:x)",
    "<javascript:window.hit=1>",
    "[a]: javascript:window.hit=1\n\n[a]",
    "![x](https://evil.example/x.png)",
    "![x](javascript:window.hit=1)",
    '[a](https://ok.example "\\" onmouseover=window.hit=1 x=\\"")',
    "`<img src=x onerror=window.hit=1>`",
    "```\n<script>window.hit = 1</script>\n```",
    "| <script>window.hit=1</script> | b |\n|---|---|\n| <img src=x onerror=window.hit=1> | 2 |",
    "&lt;script&gt;window.hit=1&lt;/script&gt;",
)
ALLOWED = {
    *("A", "BLOCKQUOTE", "BR", "CODE", "DEL", "DIV", "EM", "H4", "HR", "LI", "OL", "P", "PRE", "SPAN", "STRONG"),
    *("TABLE", "TBODY", "TD", "TH", "THEAD", "TR", "UL"),
}
_FORMAT = """async (source) => {
  const { Formatted } = await import("/playground/markdown.js");
  const box = document.body.appendChild(document.createElement("div"));
  const made = new Formatted(box);
  for (let end = 1; end < source.length; end += 7) made.draw(source.slice(0, end));
  const shown = made.draw(source);
  const grown = box.innerText;
  made.draw(source, { whole: true });
  const found = {
    shown,
    tags: [...new Set([...box.querySelectorAll("*")].map((element) => element.tagName))],
    attributes: [...new Set([...box.querySelectorAll("*")].flatMap((element) => element.getAttributeNames()))],
    schemes: [...new Set([...box.querySelectorAll("a")].map((link) => link.protocol))],
    hit: window.hit ?? null,
  };
  box.remove();
  return found;
}"""


class Told:
    """A server that answers each request with the next of `answers`, and the last one again, a word at a time."""

    def __init__(self) -> None:
        self.answers: list[str] = ["Yes."]
        self.url = ""

    def script(self, request: Request) -> Sequence[str]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [piece for piece in answer.replace(" ", " \0").split("\0") if piece]


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    said = Told()
    with Paced(100, 0, said.script) as paced:
        said.url = paced.url
        yield said


@pytest.fixture
def panel(open_page: Open, told: Told) -> Locator:
    """The chat of a page."""
    page = open_page(told.url)
    page.get_by_role("tab", name="Chat").click()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    return page.locator("#panel-chat")


def say(panel: Locator, words: str) -> None:
    panel.get_by_label("Message", exact=True).fill(words)
    panel.get_by_label("Message", exact=True).press("Enter")
    expect(panel.get_by_role("button", name="Send")).to_be_visible()


def test_markdown_is_formatted_and_can_be_seen_as_it_was_written(panel: Locator, told: Told) -> None:
    told.answers = [MARKDOWN]
    say(panel, "Show me")
    words = panel.locator(".turn .words").last
    expect(words.locator("h4")).to_have_text("Title")
    expect(words.locator("strong")).to_have_text("bold")
    expect(words.locator("ol > li")).to_have_count(2)
    expect(words.locator("td")).to_have_text(["1", "2"])
    expect(words.locator("pre")).to_have_text("SELECT a*b, c*d FROM t;")
    expect(words.locator("blockquote")).to_have_text("quoted <b>html</b>")
    expect(words.locator("a")).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(words).to_contain_text("Second line & more.")
    assert faults(panel.page) == []
    panel.get_by_role("button", name="Show as written").click()
    assert words.text_content() == MARKDOWN
    panel.get_by_role("button", name="Show formatted").click()
    expect(words.locator("h4")).to_have_text("Title")


def test_what_an_answer_says_is_never_done(panel: Locator, told: Told) -> None:
    told.answers = ["\n\n".join(ATTACKS)]
    say(panel, "Attack me")
    words = panel.locator(".turn .words").last
    tags = words.locator("*").evaluate_all("all => all.map((element) => element.tagName)")
    assert set(tags) <= ALLOWED
    assert words.locator("a").evaluate_all("all => all.map((link) => link.protocol)") == ["https:", "https:"]
    expect(words).to_contain_text("<script>window.hit = 1</script>")
    assert panel.page.evaluate("window.hit") is None


def test_the_copy_of_the_library_is_the_published_one() -> None:
    """npm ci has held it against the lock's checksum; a newer one: npm install, then copy the file."""
    ours = files("coldstream.serve.playground") / "static" / "marked.js"
    published = Path(__file__).parent / "node_modules" / "marked" / "lib" / "marked.esm.js"
    assert ours.read_bytes() == published.read_bytes()


@pytest.fixture(scope="module")
def formatter(chromium: Browser, told: Told) -> Iterator[Page]:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(told.url)
    yield page
    context.close()


FRAGMENTS = st.sampled_from(
    [
        *ATTACKS,
        *MARKDOWN.splitlines(keepends=True),
        "\n",
        "\n\n",
        "- ",
        "> ",
        "    ",
        "*",
        "_",
        "`",
        "[",
        "](",
        ")",
        "<",
        "|",
        "\\",
    ]
) | st.text(max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(parts=st.lists(FRAGMENTS, max_size=12))
def test_whatever_an_answer_holds_only_harmless_elements_are_made(formatter: Page, parts: list[str]) -> None:
    found = formatter.evaluate(_FORMAT, "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    assert set(found["tags"]) <= ALLOWED
    assert set(found["attributes"]) <= {"class", "href", "target", "rel", "tabindex", "start"}
    assert set(found["schemes"]) <= {"http:", "https:", "mailto:"}
    assert found["hit"] is None


@pytest.mark.parametrize(
    "source", [">" * 60_000 + "x", "[" * 50_000, "*a" * 50_000, "x" * 300_000], ids=lambda text: text[:3]
)
def test_what_cannot_be_formatted_is_shown_as_it_was_written(formatter: Page, source: str) -> None:
    """Deep or long: the page neither breaks nor shows nothing."""
    shown = formatter.evaluate(
        """async (source) => {
          const { Answer } = await import("/playground/answer.js");
          const answer = new Answer({ form: "markdown" });
          answer.restore({ words: source, finish: "stop" });
          return answer.output.textContent.length;
        }""",
        source,
    )
    assert shown > 0


def test_a_conversation_survives_a_reload_of_the_page(panel: Locator, told: Told) -> None:
    told.answers = ["A **first** answer."]
    panel.get_by_label("System message").fill("Be short.")
    say(panel, "One")
    page = panel.page
    page.reload()
    page.get_by_role("tab", name="Chat").click()
    expect(panel.locator(".turn strong")).to_have_text("first")
    expect(panel.get_by_label("System message")).to_have_value("Be short.")
    with page.expect_request("**/v1/chat/completions") as sent:
        say(panel, "Two")
    assert [(turn["role"], turn["content"]) for turn in sent.value.post_data_json["messages"]] == [
        ("system", "Be short."),
        ("user", "One"),
        ("assistant", "A **first** answer."),
        ("user", "Two"),
    ]
    panel.get_by_role("button", name="New chat").click()
    page.reload()
    page.get_by_role("tab", name="Chat").click()
    expect(panel.get_by_role("button", name="Send")).to_be_visible()
    expect(panel.locator(".turn")).to_have_count(0)


def test_an_answer_that_a_reload_broke_off_stays_and_is_asked_for_again(panel: Locator, told: Told) -> None:
    told.answers = ["word " * 2000, "All of it."]
    panel.get_by_label("Message", exact=True).fill("Go on")
    panel.get_by_label("Message", exact=True).press("Enter")
    expect(panel.locator(".turn .words").last).to_contain_text("word word")
    page = panel.page
    page.reload()
    page.get_by_role("tab", name="Chat").click()
    expect(panel.locator(".turn .words").last).to_contain_text("word word")
    expect(panel.locator(".turn .figures-line")).to_contain_text("broken off by a reload")
    with page.expect_request("**/v1/chat/completions") as sent:
        panel.get_by_role("button", name="Answer again").click()
    assert [turn["content"] for turn in sent.value.post_data_json["messages"]] == ["Go on"]
    expect(panel.locator(".turn .words").last).to_have_text("All of it.")
    expect(panel.locator(".turn")).to_have_count(2)


def test_a_refused_second_try_gives_the_first_answer_back(panel: Locator, told: Told) -> None:
    told.answers = ["The first."]
    say(panel, "Ask")
    page = panel.page
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, body="data: [DONE]\n\n"))
    panel.get_by_role("button", name="Answer again").click()
    expect(panel.get_by_role("alert").filter(visible=True).first).to_contain_text("broke off")
    expect(panel.locator(".turn .words").last).to_have_text("The first.")
    expect(panel.locator(".turn")).to_have_count(2)


def test_a_rate_is_the_engines_own_or_none(open_page: Open, told: Told) -> None:
    """What arrives within a frame was not drawn within one: 200 words in a millisecond are no 65,000 tokens/s."""
    page = open_page(told.url)
    rates = page.evaluate(
        """async () => {
          const { Answer } = await import("/playground/answer.js");
          const rate = async (timings) => {
            const last = { text: "c", finish_reason: "stop", usage: { completion_tokens: 3 }, timings };
            const events = [{ text: "a " }, { text: "b " }, last];
            const body = events.map((event) => `data: ${JSON.stringify(event)}\\n\\n`).join("");
            window.fetch = async () => new Response(body);
            const answer = new Answer();
            const { fromGenerate } = await import("/playground/answer.js");
            await answer.stream({ path: "generate", body: {}, read: fromGenerate, model: "default" });
            return answer.figures.textContent;
          };
          return [await rate(undefined), await rate({ tokens_per_second: 41.5 })];
        }"""
    )
    assert "–tokens/s" in rates[0]
    assert "41.5tokens/s" in rates[1]


def test_the_page_sees_that_its_server_has_gone(open_page: Open, watch: Watch) -> None:
    """Nothing is clicked: it looks by itself, oftener than once a second."""
    watch.ends = True
    with Paced(100, 0, lambda request: ["x"]) as paced:
        page = open_page(paced.url)
        expect(page.locator("#status")).to_have_text("Ready")
    expect(page.locator("#status")).to_have_text("No answer")
    expect(page.locator("#start-line")).to_contain_text("does not answer")
