"""Google's published discovery documents (shipped in google-api-python-client): what a request may look like.

A request that names an unknown method, query parameter, field or enum value, or a value of the wrong type, is a
violation; the fake refuses it, and the test that made it fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

from google.protobuf import json_format

DOCUMENTS = {
    "run": "run.v2",
    "cloudbuild": "cloudbuild.v1",
    "artifactregistry": "artifactregistry.v1",
    "serviceusage": "serviceusage.v1",
    "cloudresourcemanager": "cloudresourcemanager.v3",
    "iam": "iam.v1",
    "policytroubleshooter": "policytroubleshooter.v3",
    "orgpolicy": "orgpolicy.v2",
    "cloudbilling": "cloudbilling.v1",
    "logging": "logging.v2",
    "storage": "storage.v1",
    "iamcredentials": "iamcredentials.v1",
    "www": "oauth2.v2",
    "secretmanager": "secretmanager.v1",
    "compute": "compute.v1",
    "cloudkms": "cloudkms.v1",
}

# Google's REST transports write enums as numbers ("enum-encoding=int"), the documents as names: these are the
# messages that translate between them.
BODY_TYPES = {
    "run.projects.locations.services.create": ("google.cloud.run_v2", "Service"),
    "run.projects.locations.services.patch": ("google.cloud.run_v2", "Service"),
    "run.projects.locations.jobs.create": ("google.cloud.run_v2", "Job"),
    "cloudbuild.projects.locations.builds.create": ("google.cloud.devtools.cloudbuild_v1", "Build"),
    "artifactregistry.projects.locations.repositories.create": ("google.cloud.artifactregistry_v1", "Repository"),
}

# Parameters of every Google API that the documents do not list.
SYSTEM_PARAMETERS = {"$alt", "$.xgafv", "alt", "key", "fields", "prettyPrint", "uploadType", "quotaUser", "projection"}


@dataclass(frozen=True)
class Method:
    """One method of a discovery document."""

    id: str
    service: str
    http: str
    pattern: re.Pattern[str]
    parameters: Mapping[str, Any]
    request: str | None


def text(name: str) -> str:
    """A document as it was published."""
    folder = files("googleapiclient.discovery_cache").joinpath("documents")
    return folder.joinpath(f"{name}.json").read_text(encoding="utf-8")


@cache
def document(service: str) -> dict[str, Any]:
    """The discovery document of a service."""
    return json.loads(text(DOCUMENTS[service]))


@cache
def methods(service: str) -> tuple[Method, ...]:
    """Every method of a service; uploads are listed beside their plain form."""
    if service == "cloudquotas":
        return (_QUOTA_INFO,)
    whole = document(service)
    return tuple(_methods(service, whole["servicePath"], whole))


def find(service: str, http: str, path: str) -> tuple[Method, dict[str, str]] | None:
    """The method that a path belongs to, and the path's variables."""
    if service not in DOCUMENTS and service != "cloudquotas":
        return None
    for method in methods(service):
        if method.http == http and (match := method.pattern.fullmatch(path)):
            return method, match.groupdict()
    return None


def body_as_published(method: Method, body: dict[str, Any]) -> dict[str, Any]:
    """The body with enum names for numbers. Raises json_format.ParseError for what the message does not have."""
    if method.id not in BODY_TYPES:
        return body
    module, name = BODY_TYPES[method.id]
    message = getattr(import_module(module), name).pb()()
    json_format.ParseDict(body, message)
    return json_format.MessageToDict(message)


def violations(method: Method, query: Mapping[str, list[str]], body: Any) -> list[str]:
    """What a request says that the document does not allow; empty when it is right."""
    found = [
        f"{method.id}: unknown query parameter {name}"
        for name in query
        if name not in method.parameters and name not in SYSTEM_PARAMETERS
    ]
    for name, values in query.items():
        known = method.parameters.get(name, {}).get("enum")
        found += [
            f"{method.id}: {name}={value} is not one of {known}" for value in values if known and value not in known
        ]
    for value in query.get("updateMask", []):
        found += mask_violations(method, value)
    if body is not None and method.request is None and body != {}:
        found.append(f"{method.id}: a body where none is allowed")
    if body is not None and method.request is not None:
        found += schema_violations(document(method.service)["schemas"], {"$ref": method.request}, body, method.id)
    return found


def mask_violations(method: Method, mask: str) -> Iterator[str]:
    """Each path of an update mask is a field of the request that a caller may set; "*" stands for all of them."""
    schemas = document(method.service)["schemas"]
    for path in mask.split(","):
        schema = schemas.get(method.request or "", {})
        for name in path.split(".") if path != "*" else ():
            field = schema.get("properties", {}).get(name)
            if field is None or field.get("readOnly"):
                yield f"{method.id}: updateMask={path} {'is read-only' if field else 'is no field of the request'}"
                break
            schema = schemas[field["$ref"]] if "$ref" in field else field


def schema_violations(schemas: Mapping[str, Any], schema: Mapping[str, Any], value: Any, where: str) -> Iterator[str]:
    if "$ref" in schema:
        schema = schemas[schema["$ref"]]
    kind = schema.get("type")
    if kind == "object":
        if not isinstance(value, dict):
            yield f"{where}: {value!r} is not an object"
            return
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if inner is None:
                yield f"{where}: unknown field {key}"
            else:
                yield from schema_violations(schemas, inner, item, f"{where}.{key}")
    elif kind == "array":
        if not isinstance(value, list):
            yield f"{where}: {value!r} is not an array"
            return
        for index, item in enumerate(value):
            yield from schema_violations(schemas, schema["items"], item, f"{where}[{index}]")
    elif kind == "string":
        if not isinstance(value, str):
            yield f"{where}: {value!r} is not a string"
        elif "enum" in schema and value not in schema["enum"]:
            yield f"{where}: {value!r} is not one of {schema['enum']}"
    elif kind == "integer" and (isinstance(value, bool) or not isinstance(value, int)):
        yield f"{where}: {value!r} is not an integer"
    elif kind == "boolean" and not isinstance(value, bool):
        yield f"{where}: {value!r} is not true or false"


def _methods(service: str, prefix: str, node: Mapping[str, Any]) -> Iterator[Method]:
    for method in node.get("methods", {}).values():
        paths = [prefix + (method.get("flatPath") or method["path"])]
        paths += [item["path"].lstrip("/") for item in method.get("mediaUpload", {}).get("protocols", {}).values()]
        if method.get("useMediaDownloadService"):
            paths.append(f"download/{paths[0]}")
        for path in paths:
            request = method.get("request", {}).get("$ref")
            yield Method(
                method["id"], service, method["httpMethod"], _pattern(path), method.get("parameters", {}), request
            )
    for child in node.get("resources", {}).values():
        yield from _methods(service, prefix, child)


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"\{\+?(\w+)\}", path)
    text = "".join(_variable(part) if index % 2 else re.escape(part) for index, part in enumerate(parts))
    return re.compile("/" + text)


def _variable(name: str) -> str:
    # A colon begins a verb, but for a project that belongs to a domain, as example.com:project.
    domain = r"(?:[a-z0-9-]+(?:\.[a-z0-9-]+)+(?::|%3A))?" if name in ("project", "projectsId") else ""
    return f"(?P<{name}>{domain}[^/:]+)"


# google-api-python-client 2.202 ships no document for Cloud Quotas; this is the binding in google-cloud-quotas 0.6.3,
# cloudquotas_v1/services/cloud_quotas/transports/rest_base.py.
_QUOTA_INFO = Method(
    id="cloudquotas.projects.locations.services.quotaInfos.get",
    service="cloudquotas",
    http="GET",
    pattern=_pattern(
        "v1/projects/{projectsId}/locations/{locationsId}/services/{servicesId}/quotaInfos/{quotaInfosId}"
    ),
    parameters={},
    request=None,
)
