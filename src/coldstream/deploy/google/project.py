"""The project: who calls, which APIs are on, billing, organisation policies, quotas, secrets, subnets."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from coldstream.deploy.google.clients import KEYS, NETWORKS, ONCE, SECRETS, TIMEOUT, Clients
from coldstream.deploy.google.mapping import asked, called, module
from coldstream.deploy.google.operations import Pending, pending, plain
from coldstream.errors import PermissionRefused


class ProjectCalls(Clients):
    """What is asked about a project."""

    @asked
    def caller(self) -> str:
        """The caller's IAM member (`user:...` or `serviceAccount:...`)."""
        place = f"{self._endpoints.of('www.googleapis.com')}/oauth2/v2/userinfo"
        answer = self._uncharged_session().get(place, timeout=TIMEOUT)
        if answer.status_code == 429 or answer.status_code >= 500:
            raise module("google.api_core.exceptions").from_http_response(answer)
        email = str(answer.json().get("email", "")) if answer.status_code == 200 else ""
        if not email:
            # A federated identity has no address; its own member name is not told by its token.
            raise PermissionRefused(f"the credentials do not say whose they are (HTTP {answer.status_code})")
        return f"serviceAccount:{email}" if email.endswith(".gserviceaccount.com") else f"user:{email}"

    @asked
    def enabled_apis(self, project: str, apis: Sequence[str]) -> Mapping[str, bool]:
        """Which APIs are on, in one batch (at most 30)."""
        names = [f"projects/{project}/services/{api}" for api in apis]
        answer = self._usage().batch_get_services({"parent": f"projects/{project}", "names": names}, **ONCE)
        return {item.name.rsplit("/", 1)[1]: item.state.name == "ENABLED" for item in answer.services}

    @called
    def enable_apis(self, project: str, apis: Sequence[str]) -> Pending:
        """Turn APIs on, in one batch (at most 20)."""
        request = {"parent": f"projects/{project}", "service_ids": list(apis)}
        return pending("turning on the APIs", self._usage().batch_enable_services(request, **ONCE))

    @asked
    def project(self, project: str) -> Mapping[str, str]:
        """`{"number", "parent"}`: the parent is a folder or an organisation, or empty for none."""
        found = self._projects().get_project(name=f"projects/{project}", **ONCE)
        return {"number": str(found.name).rsplit("/", 1)[1], "parent": str(found.parent)}

    @asked
    def billing_enabled(self, project: str) -> bool:
        """Whether a billing account pays for the project."""
        info = self._billing().get_project_billing_info(name=f"projects/{project}", **ONCE)
        return bool(info.billing_enabled)

    @asked
    def organisation_policy(self, project: str, constraint: str) -> Mapping[str, Any]:
        """What is in force for the project after inheritance: `{"rules": [...]}`."""
        name = f"projects/{project}/policies/{constraint}"
        policy = plain(self._org_policy().get_effective_policy(name=name, **ONCE))
        return dict(policy.get("spec", {}))

    @asked
    def quota(self, project: str, quota_id: str) -> Mapping[str, int]:
        """The limit of each region, in the quota's own unit; a region that is not named has none of its own."""
        place = f"projects/{project}/locations/global/services/run.googleapis.com/quotaInfos/{quota_id}"
        found = {}
        for info in self._quotas().get_quota_info(name=place, **ONCE).dimensions_infos:
            for region in (info.dimensions.get("region"), *info.applicable_locations):
                if region and region != "global":
                    found[str(region)] = int(info.details.value)
        return found

    # Secret Manager, Cloud KMS and Compute have no client among the dependencies.

    @asked
    def secret(self, name: str) -> Mapping[str, Any]:
        """A secret, without what is in it."""
        return dict(self._json("GET", SECRETS, f"v1/{name}"))

    @asked
    def secret_value(self, name: str) -> str:
        """What the newest version of a secret holds."""
        answer = self._json("GET", SECRETS, f"v1/{name}/versions/latest:access")
        return base64.b64decode(answer["payload"]["data"]).decode()

    @called
    def create_secret(self, name: str, labels: Mapping[str, str]) -> None:
        """Make a secret without a version."""
        parent, _, short = name.partition("/secrets/")
        body = {"replication": {"automatic": {}}, "labels": dict(labels)}
        self._json("POST", SECRETS, f"v1/{parent}/secrets?secretId={short}", body)

    @called
    def add_secret_version(self, name: str, value: bytes) -> None:
        """Give a secret a value."""
        self._json("POST", SECRETS, f"v1/{name}:addVersion", {"payload": {"data": base64.b64encode(value).decode()}})

    @asked
    def subnet(self, name: str) -> Mapping[str, Any]:
        """A subnet, as Compute Engine has it."""
        return dict(self._json("GET", NETWORKS, f"compute/v1/{name}"))

    @asked
    def key(self, name: str) -> Mapping[str, Any]:
        """A key, without what is in it."""
        return dict(self._json("GET", KEYS, f"v1/{name}"))
