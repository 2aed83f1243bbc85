"""The project: who calls, which APIs are on, billing, organisation policies, quotas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coldstream.deploy.google.clients import TIMEOUT, Clients
from coldstream.deploy.google.mapping import called
from coldstream.deploy.google.operations import Pending, pending, plain
from coldstream.errors import PermissionRefused


class ProjectCalls(Clients):
    """What is asked about a project."""

    @called
    def caller(self) -> str:
        """The caller's IAM member (`user:...` or `serviceAccount:...`)."""
        answer = self._session().get(f"{self._endpoints.of('www.googleapis.com')}/oauth2/v2/userinfo", timeout=TIMEOUT)
        if answer.status_code != 200:
            raise PermissionRefused(f"the credentials do not say whose they are (HTTP {answer.status_code})")
        email = str(answer.json()["email"])
        return f"serviceAccount:{email}" if email.endswith(".gserviceaccount.com") else f"user:{email}"

    @called
    def enabled_apis(self, project: str, apis: Sequence[str]) -> Mapping[str, bool]:
        """Which APIs are on, in one batch (at most 30)."""
        names = [f"projects/{project}/services/{api}" for api in apis]
        answer = self._usage().batch_get_services({"parent": f"projects/{project}", "names": names}, timeout=TIMEOUT)
        return {item.name.rsplit("/", 1)[1]: item.state.name == "ENABLED" for item in answer.services}

    @called
    def enable_apis(self, project: str, apis: Sequence[str]) -> Pending:
        """Turn APIs on, in one batch (at most 20)."""
        request = {"parent": f"projects/{project}", "service_ids": list(apis)}
        return pending("turning on the APIs", self._usage().batch_enable_services(request, timeout=TIMEOUT))

    @called
    def project_parent(self, project: str) -> str:
        """The folder or organisation that the project belongs to; empty for none."""
        return str(self._projects().get_project(name=f"projects/{project}", timeout=TIMEOUT).parent)

    @called
    def billing_enabled(self, project: str) -> bool:
        """Whether a billing account pays for the project."""
        info = self._billing().get_project_billing_info(name=f"projects/{project}", timeout=TIMEOUT)
        return bool(info.billing_enabled)

    @called
    def organisation_policy(self, project: str, constraint: str) -> Mapping[str, Any]:
        """What is in force for the project after inheritance: `{"rules": [...]}`."""
        name = f"projects/{project}/policies/{constraint}"
        policy = plain(self._org_policy().get_effective_policy(name=name, timeout=TIMEOUT))
        return dict(policy.get("spec", {}))

    @called
    def quota(self, project: str, region: str, quota_id: str) -> int | None:
        """The limit in a region, in milli-vCPU, bytes or GPUs; None where the answer does not name the region."""
        place = f"projects/{project}/locations/global/services/run.googleapis.com/quotaInfos/{quota_id}"
        for info in self._quotas().get_quota_info(name=place, timeout=TIMEOUT).dimensions_infos:
            if info.dimensions.get("region") == region or region in info.applicable_locations:
                return int(info.details.value)
        return None
