"""A file, dropped on the page as a person does it."""

from __future__ import annotations

import base64

from playwright.sync_api import Page

_DROP = """async ([target, name, type, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type }));
  for (const kind of ["dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
  }
}"""


def drop(page: Page, selector: str, name: str, kind: str, data: bytes) -> None:
    """As a person drops a file: the page sees its name, its type and its bytes."""
    target = page.locator(selector).element_handle()
    page.evaluate(_DROP, [target, name, kind, base64.b64encode(data).decode()])
