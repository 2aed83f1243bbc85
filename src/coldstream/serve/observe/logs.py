"""Logs as Cloud Logging reads them: one JSON object a line, with severity, trace and request id.

https://cloud.google.com/logging/docs/structured-logging. Prompts and keys are never in them; the prompt is, where
`server.log_prompts` asks for it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

LOGGER = "coldstream"

_SEVERITIES = {logging.DEBUG: "DEBUG", logging.INFO: "INFO", logging.WARNING: "WARNING", logging.ERROR: "ERROR"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_CLOUD_TRACE = re.compile(r"([0-9a-f]{32})(?:/.*)?", re.IGNORECASE)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class JsonFormatter(logging.Formatter):
    """`extra={"fields": {...}}` goes into the object as it is."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        entry: dict[str, Any] = {
            "severity": _SEVERITIES.get(record.levelno, record.levelname),
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "message": record.getMessage(),
            "logger": record.name,
        }
        entry |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            # Error Reporting groups by a stack trace that it finds under this name.
            entry["stack_trace"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(entry, ensure_ascii=False, default=str, separators=(",", ":"))


def configure(stream: TextIO = sys.stderr, *, level: int = logging.INFO) -> None:
    """Send Coldstream's and uvicorn's logs to `stream` as JSON. Called by the command line only."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    for name in (LOGGER, "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name != "uvicorn.error" else []
        logger.setLevel(level)
        logger.propagate = name == "uvicorn.error"
    logging.getLogger("uvicorn.access").disabled = True  # ours has the tokens and the trace


def request_id(given: str | None) -> str | None:
    """The caller's request id, if it is fit for a log line and an HTTP header."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else None


def trace_id(headers: Mapping[str, str]) -> str | None:
    """The trace that the request belongs to: from `traceparent` (W3C), else `X-Cloud-Trace-Context`."""
    parent = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    cloud = _CLOUD_TRACE.fullmatch(headers.get("x-cloud-trace-context", ""))
    found = parent or cloud
    return found.group(1).lower() if found else None


def trace_field(trace: str | None, project: str | None) -> dict[str, str]:
    """`logging.googleapis.com/trace`, which joins the line to the trace and to Cloud Run's own request log."""
    if trace is None:
        return {}
    return {"logging.googleapis.com/trace": f"projects/{project}/traces/{trace}" if project else trace}


def severity(status: int) -> int:
    """A log level for an HTTP status."""
    return logging.ERROR if status >= 500 and status != 503 else logging.WARNING if status >= 400 else logging.INFO
