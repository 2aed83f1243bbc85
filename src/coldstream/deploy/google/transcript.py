"""What was asked of Google and what it answered, a JSON line a call, so that a real run can be compared with the fake.

Headers are left out, and so are the bodies of calls that carry a secret: tokens, keys, sources. IAM admin is spoken
over gRPC and is not in it.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from coldstream.errors import SettingsError

MOST_TEXT = 20_000
_UNTOLD = (":generateIdToken", ":access", ":addVersion", "/upload/", "alt=media", "/oauth2/")


class Transcript:
    """Appends to a file; safe to use from several threads.

    Raises:
        SettingsError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.open("a").close()
        except OSError as exc:
            raise SettingsError(f"{path}: cannot be written ({exc.strerror})") from exc
        self._path = path
        self._lock = threading.Lock()

    def watch(self, session: Any) -> None:
        """Hear every answer of a requests.Session from now on."""
        session.hooks["response"].append(self._hear)

    def _hear(self, answer: Any, *_: Any, **__: Any) -> None:
        request = answer.request
        told = not any(mark in request.url for mark in _UNTOLD)
        line = {
            "method": request.method,
            "url": request.url,
            "asked": _text(request.body) if told else "left out",
            "status": answer.status_code,
            "answered": _text(answer.content) if told else "left out",
        }
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _text(body: Any) -> str:
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}... ({len(text)} characters)"
