"""Cloud Run: the service and its revisions, and what their containers say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from coldstream.deploy.google.clients import ONCE, Clients
from coldstream.deploy.google.mapping import asked, called, module
from coldstream.deploy.google.operations import Pending, pending, plain
from coldstream.errors import ResourceNotFound


class RunCalls(Clients):
    """Cloud Run and its logs."""

    def service(self, name: str) -> Mapping[str, Any] | None:
        """The service as it is deployed; None when there is none.

        `unread` is why the installed client cannot read all of its template, where it cannot: what is written back
        would lack that field.
        """
        try:
            return self._service(name)
        except ResourceNotFound:
            return None

    @asked
    def _service(self, name: str) -> Mapping[str, Any]:
        run_v2 = module("google.cloud.run_v2")
        raw = self._json("GET", "run.googleapis.com", f"v2/{name}")
        found = plain(run_v2.Service.from_json(json.dumps(raw), ignore_unknown_fields=True))
        try:
            run_v2.RevisionTemplate.from_json(json.dumps(raw.get("template", {})))
        except module("google.protobuf.json_format").ParseError as exc:
            found["unread"] = str(exc)
        return found

    @called
    def create_service(self, name: str, spec: Mapping[str, Any], *, validate_only: bool) -> Pending:
        """Make a service."""
        run_v2 = module("google.cloud.run_v2")
        parent, _, short = name.partition("/services/")
        service = run_v2.Service({key: value for key, value in spec.items() if key != "name"})
        request = {"parent": parent, "service_id": short, "service": service, "validate_only": validate_only}
        return pending("the revision", self._run().create_service(run_v2.CreateServiceRequest(request), **ONCE))

    @called
    def update_service(self, spec: Mapping[str, Any], *, mask: Sequence[str], validate_only: bool) -> Pending:
        """Change the fields of a service that `mask` names, and no other; `spec["etag"]` guards against others.

        Raises:
            ResourceConflict: the service changed in between.
        """
        run_v2 = module("google.cloud.run_v2")
        update_mask = module("google.protobuf.field_mask_pb2").FieldMask(paths=list(mask))
        named = {key: spec[key] for key in ("name", "etag", *mask) if key in spec}
        service = run_v2.Service(named)
        request = run_v2.UpdateServiceRequest(
            {"service": service, "update_mask": update_mask, "validate_only": validate_only}
        )
        return pending("the revision", self._run().update_service(request, **ONCE))

    @called
    def delete_service(self, name: str) -> Pending:
        """Remove a service with its revisions."""
        return pending("removing the service", self._run().delete_service(name=name, **ONCE))

    def revision(self, name: str) -> Mapping[str, Any] | None:
        """One revision; None when there is none."""
        try:
            return self._revision(name)
        except ResourceNotFound:
            return None

    @asked
    def _revision(self, name: str) -> Mapping[str, Any]:
        return plain(self._revisions().get_revision(name=name, **ONCE))

    @asked
    def revisions(self, service: str) -> tuple[Mapping[str, Any], ...]:
        """Every revision, the newest first."""
        return tuple(plain(item) for item in self._revisions().list_revisions(parent=service, **ONCE))

    @asked
    def services(self, location: str) -> tuple[Mapping[str, Any], ...]:
        """Every service of a region."""
        return tuple(plain(item) for item in self._run().list_services(parent=location, **ONCE))

    # Jobs

    @called
    def create_job(self, name: str, spec: Mapping[str, Any]) -> Pending:
        """Make a job; it does not run yet."""
        run_v2 = module("google.cloud.run_v2")
        parent, _, short = name.partition("/jobs/")
        request = {"parent": parent, "job_id": short, "job": run_v2.Job(dict(spec))}
        return pending("the job", self._jobs().create_job(run_v2.CreateJobRequest(request), **ONCE))

    @called
    def run_job(self, name: str) -> tuple[str, Pending]:
        """Run a job once; the execution's name, and the operation, which has ended when the execution has."""
        run_v2 = module("google.cloud.run_v2")
        operation = self._jobs().run_job(run_v2.RunJobRequest({"name": name}), **ONCE)
        return str(operation.metadata.name), pending("the job's execution", operation)

    def job(self, name: str) -> Mapping[str, Any] | None:
        """A job; None when there is none."""
        try:
            return self._job(name)
        except ResourceNotFound:
            return None

    @asked
    def _job(self, name: str) -> Mapping[str, Any]:
        return plain(self._jobs().get_job(name=name, **ONCE))

    @called
    def delete_job(self, name: str) -> Pending:
        """Remove a job with its executions."""
        return pending("removing the job", self._jobs().delete_job(name=name, **ONCE))

    # Logging

    @asked
    def log_entries(self, project: str, filter_: str, *, newest: int) -> tuple[Mapping[str, Any], ...]:
        """`{"id", "time", "severity", "text"}` of the newest entries that match, the oldest of them first."""
        body = {
            "resourceNames": [f"projects/{project}"],
            "filter": filter_,
            "orderBy": "timestamp desc",
            "pageSize": newest,
        }
        answer = self._json("POST", "logging.googleapis.com", "v2/entries:list", body)
        return tuple(_entry(item) for item in reversed(answer.get("entries", [])))


def _entry(item: Mapping[str, Any]) -> Mapping[str, Any]:
    payload = item.get("jsonPayload", {})
    text = item.get("textPayload") or payload.get("message") or payload.get("event") or str(payload or "")
    known = {"id": item.get("insertId", ""), "time": item.get("timestamp", "")}
    return {**known, "severity": item.get("severity", "DEFAULT"), "text": text.rstrip("\n")}
