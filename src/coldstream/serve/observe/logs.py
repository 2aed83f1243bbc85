"""Logs: lines for people on a terminal; elsewhere as Cloud Logging reads them, one JSON object a line, with severity,
trace and request id (https://cloud.google.com/logging/docs/structured-logging).

Prompts and keys are never in them; the prompt is, where
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

from coldstream.errors import printable
from coldstream.progress_line import is_terminal
from coldstream.settings import LogFormat

LOGGER = "coldstream"
REQUESTS = "coldstream.http"
"""Has a line for each request."""

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


class LineFormatter(logging.Formatter):
    """The time here, the message, and the fields that say more to a person; a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, in which nothing that a client sent is obeyed by a terminal."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        fields = getattr(record, "fields", {})
        said = [f"{name}={value}" for name, value in fields.items() if name not in _FOR_MACHINES]
        taken = fields.get("httpRequest", {}).get("latency")
        line = "  ".join([f"{level}{record.getMessage()}", *([taken] if taken else []), *said])
        text = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {_one_line(line)}"
        if record.exc_info and record.exc_info[1] is not None:
            trace = "".join(traceback.format_exception(record.exc_info[1])).splitlines()
            text = "\n".join([text, *map(printable, trace)])
        return text


def _one_line(text: str) -> str:
    return printable(text).replace("\n", "\\n")


_FOR_MACHINES = frozenset({"httpRequest", "logging.googleapis.com/trace"})


def is_json(form: LogFormat, stream: TextIO) -> bool:
    """Whether a log of that form is JSON there."""
    return not is_terminal(stream) if form == "auto" else form == "json"


def configure(
    stream: TextIO = sys.stderr, *, level: int = logging.INFO, form: LogFormat = "json", access_log: bool = True
) -> None:
    """Send Coldstream's and uvicorn's logs to `stream`. Without `access_log` a request has a line only where the server
    failed. Called by the command line only.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if is_json(form, stream) else LineFormatter())
    logging.getLogger(REQUESTS).setLevel(level if access_log else logging.ERROR)
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
