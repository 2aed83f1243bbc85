"""What the page costs a reader; by hand, on a machine that is otherwise idle: `python -m tests.browser.measure`.

First paint over loopback with an empty cache, bytes over the wire, and what 200 tokens a second do to the frames: the
gaps between animation frames while an answer streams, beside those of the same page at rest.
"""

from __future__ import annotations

import statistics
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.conftest import launch
from tests.browser.paced import Paced

RATE, TOKENS = 200, 1200
LOADS = 15
_FRAMES = """() => {
  window.gaps = [];
  let last = null;
  const begun = performance.now();
  const frame = (now) => {
    if (last !== null) window.gaps.push([last - begun, now - last]);
    last = now;
    if (window.gaps) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}"""
_LONG = """() => {
  window.long = [];
  new PerformanceObserver((list) => window.long.push(...list.getEntries().map((entry) => entry.duration)))
    .observe({ type: "longtask" });
}"""


def first_paint(browser: Browser, url: str) -> None:
    """With a new profile for each load: nothing is cached."""
    painted, sent = [], 0
    for _ in range(LOADS):
        context = browser.new_context(viewport={"width": 1280, "height": 860})
        page = context.new_page()
        page.goto(url)
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        entries: list[dict[str, Any]] = page.evaluate("performance.getEntries().map((entry) => entry.toJSON())")
        painted.append({item["name"]: item["startTime"] for item in entries if item["entryType"] == "paint"})
        files = [
            item for item in entries if item.get("initiatorType") in ("navigation", "script", "link", "css", "other")
        ]
        sent = sum(item["transferSize"] for item in files)
        context.close()
    for name in ("first-paint", "first-contentful-paint"):
        values = sorted(item[name] for item in painted)
        print(f"{name}: median {statistics.median(values):.0f} ms, best {values[0]:.0f}, worst {values[-1]:.0f}")
    print(f"transferred: {sent} bytes, headers included")


def frames(page: Page, during: str) -> None:
    """What `_FRAMES` and `_LONG` have seen."""
    seen: list[tuple[float, float]] = page.evaluate("(() => { const seen = gaps; window.gaps = null; return seen; })()")
    gaps = [gap for _, gap in seen]
    period = statistics.median(gaps)
    late = [(at, gap) for at, gap in seen if gap > 1.5 * period]
    dropped = sum(round(gap / period) - 1 for _, gap in late)
    long = page.evaluate("window.long.splice(0)")
    where = ", ".join(f"{gap:.0f} ms at {at / 1000:.2f} s" for at, gap in late) or "none"
    print(
        f"{during}: {len(gaps)} frames of {period:.1f} ms, {dropped} dropped ({where}); tasks over 50 ms: {len(long)}"
    )


def streaming(browser: Browser, url: str) -> None:
    """An answer at the rate, twice: at rest first, for comparison."""
    page = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
    page.goto(url)
    expect(page.locator("#status")).to_have_text("Ready", timeout=20_000)
    page.wait_for_timeout(1000)
    page.evaluate(_LONG)
    page.evaluate(_FRAMES)
    page.wait_for_timeout(5000)
    frames(page, "at rest")
    page.get_by_label("prompt").fill("Go")
    panel = page.locator("#panel-task")
    panel.get_by_text("Sampling").click()
    panel.get_by_label("Most tokens").fill(str(TOKENS))
    for turn in ("first answer", "second answer"):
        page.evaluate(_FRAMES)
        page.get_by_role("button", name="Ask").click()
        expect(panel.locator(".figures-line")).to_contain_text("finished", timeout=30_000)
        frames(page, turn)
        print(f"  {' · '.join(panel.locator('.figures-line li').all_text_contents())}")
        page.wait_for_timeout(500)


def main() -> None:
    """Print everything."""
    with Paced(RATE, TOKENS) as paced, sync_playwright() as playwright:
        browser = launch(playwright)
        print(f"Chromium {browser.version}")
        first_paint(browser, paced.url)
        streaming(browser, paced.url)
        browser.close()


if __name__ == "__main__":
    main()
