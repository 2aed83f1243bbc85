"""Cloud Run: the service and its revisions, and what their containers say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coldstream.deploy.google.clients import TIMEOUT, Clients
from coldstream.deploy.google.mapping import called, mapped, module
from coldstream.deploy.google.operations import Pending, pending, plain
from coldstream.errors import ResourceNotFound


class RunCalls(Clients):
    """Cloud Run and its logs."""

    def service(self, name: str) -> Mapping[str, Any] | None:
        """The service as it is deployed; None when there is none."""
        try:
            with mapped():
                return plain(self._run().get_service(name=name, timeout=TIMEOUT))
        except ResourceNotFound:
            return None

    @called
    def create_service(self, name: str, spec: Mapping[str, Any], *, validate_only: bool) -> Pending:
        """Make a service."""
        run_v2 = module("google.cloud.run_v2")
        parent, _, short = name.partition("/services/")
        service = run_v2.Service({key: value for key, value in spec.items() if key != "name"})
        request = {"parent": parent, "service_id": short, "service": service, "validate_only": validate_only}
        return pending(
            "the revision", self._run().create_service(run_v2.CreateServiceRequest(request), timeout=TIMEOUT)
        )

    @called
    def update_service(self, spec: Mapping[str, Any], *, validate_only: bool) -> Pending:
        """Replace a service; `spec["etag"]` guards against others.

        Raises:
            ResourceConflict: the service changed in between.
        """
        run_v2 = module("google.cloud.run_v2")
        request = run_v2.UpdateServiceRequest({"service": run_v2.Service(dict(spec)), "validate_only": validate_only})
        return pending("the revision", self._run().update_service(request, timeout=TIMEOUT))

    @called
    def delete_service(self, name: str) -> Pending:
        """Remove a service with its revisions."""
        return pending("removing the service", self._run().delete_service(name=name, timeout=TIMEOUT))

    def revision(self, name: str) -> Mapping[str, Any] | None:
        """One revision; None when there is none."""
        try:
            with mapped():
                return plain(self._revisions().get_revision(name=name, timeout=TIMEOUT))
        except ResourceNotFound:
            return None

    @called
    def revisions(self, service: str) -> tuple[Mapping[str, Any], ...]:
        """Every revision, the newest first."""
        return tuple(plain(item) for item in self._revisions().list_revisions(parent=service, timeout=TIMEOUT))

    @called
    def services(self, location: str) -> tuple[Mapping[str, Any], ...]:
        """Every service of a region."""
        return tuple(plain(item) for item in self._run().list_services(parent=location, timeout=TIMEOUT))

    # Logging

    @called
    def log_entries(self, project: str, filter_: str, *, newest: int) -> tuple[Mapping[str, Any], ...]:
        """`{"id", "time", "severity", "text"}` of the newest entries that match, the oldest of them first."""
        body = {
            "resourceNames": [f"projects/{project}"],
            "filter": filter_,
            "orderBy": "timestamp desc",
            "pageSize": newest,
        }
        answer = self._session().post(
            f"{self._endpoints.of('logging.googleapis.com')}/v2/entries:list", json=body, timeout=TIMEOUT
        )
        if answer.status_code != 200:
            raise module("google.api_core.exceptions").from_http_response(answer)
        return tuple(_entry(item) for item in reversed(answer.json().get("entries", [])))


def _entry(item: Mapping[str, Any]) -> Mapping[str, Any]:
    payload = item.get("jsonPayload", {})
    text = item.get("textPayload") or payload.get("message") or payload.get("event") or str(payload or "")
    known = {"id": item.get("insertId", ""), "time": item.get("timestamp", "")}
    return {**known, "severity": item.get("severity", "DEFAULT"), "text": text.rstrip("\n")}
