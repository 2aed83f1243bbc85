"""Why a store refused, in its own words, and what mends exactly that.

Google's JSON API: https://cloud.google.com/storage/docs/json_api/v1/status-codes; the XML of Google's other API, of S3
and of Azure has Code, Message and Details.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from xml.sax.saxutils import unescape

from coldstream.weights.checkpoint.uri import Scheme
from coldstream.weights.stores.http import Response

# Characters of a store's own message that an error repeats.
LONGEST = 400
_TAGS = tuple(re.compile(rf"<{tag}>([^<]*)</{tag}>") for tag in ("Code", "Message", "Details"))

_USUAL: dict[Scheme, str] = {
    "gs": "grant roles/storage.objectViewer on the bucket, or run: gcloud auth application-default login",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of someone with s3:GetObject and s3:ListBucket",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or a SAS token",
    "file": "check the file's permissions",
}

_Words = Callable[[str], bool]


def _has(*words: str) -> _Words:
    return lambda reason: any(word in reason for word in words)


# What the store says (in lower case), and what helps; the first that fits. These are refusals that no role mends.
_MENDS: tuple[tuple[_Words, str], ...] = (
    (
        _has("vpcservicecontrols", "securitypolicyviolated", "prohibited by organization"),
        "VPC Service Controls keep this caller out: have the organisation's administrator allow it in an ingress rule,"
        " or read from inside of the perimeter",
    ),
    (
        _has("accessnotconfigured", "service_disabled", "has not been used in project"),
        "turn the API on: gcloud services enable storage.googleapis.com --project THE-BUCKETS-PROJECT",
    ),
    (
        _has("usage_project_denied", "userprojectaccessdenied", "serviceusage.services.use"),
        "grant roles/serviceusage.serviceUsageConsumer on the project that pays, or name another one in"
        " GOOGLE_CLOUD_QUOTA_PROJECT",
    ),
    (
        _has("requester pays", "userprojectmissing"),
        "the bucket makes the reader pay: name the project that does in GOOGLE_CLOUD_QUOTA_PROJECT",
    ),
    (
        _has("accountdisabled", "billing"),
        "enable billing for the project that owns the bucket (console.cloud.google.com/billing)",
    ),
)


def reason_of(response: Response) -> str:
    """The store's own words on one line, or ""; they are foreign, so they are cut and only printable."""
    text = response.body.decode("utf-8", errors="replace")
    words = _from_json(text) if text.lstrip().startswith("{") else reason_in(text)
    return _one_line(words)


def reason_in(text: str) -> str:
    """The same from anything that holds the XML of an error."""
    found = (tag.search(text) for tag in _TAGS)
    return _one_line(": ".join(dict.fromkeys(unescape(match[1]) for match in found if match and match[1])))


def mend(scheme: Scheme, reason: str) -> str | None:
    """What helps against exactly this refusal; None when the store gave no reason that we know."""
    if scheme != "gs":
        return None
    return next((help_ for fits, help_ in _MENDS if fits(reason.lower())), None)


def usual_mend(scheme: Scheme) -> str:
    """What helps against most refusals."""
    return _USUAL.get(scheme, "the server wants credentials")


def _from_json(text: str) -> str:
    try:
        error: Any = json.loads(text).get("error")
    except (ValueError, RecursionError, AttributeError):
        return ""
    if not isinstance(error, dict):
        return str(error or "")
    details = error.get("errors") or error.get("details") or ()
    reasons = [item.get("reason") for item in details if isinstance(item, dict)] if isinstance(details, list) else []
    return ": ".join(str(part) for part in (*reasons, error.get("message")) if part)


def _one_line(text: str) -> str:
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split())[:LONGEST]
