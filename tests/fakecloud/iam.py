"""Who may do what in the fake: roles expand to permissions, policies sit on resources, grants take time to act.

Roles come from roles.json, which names its source and date.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

Access = Literal["CAN_ACCESS", "CANNOT_ACCESS", "UNKNOWN_INFO"]

# What takes which roles in its policy, by the lowest resource of https://cloud.google.com/iam/docs/roles-permissions;
# a project takes all but those that are a bucket's alone.
TAKES: dict[str, tuple[str, ...]] = {
    "storage": ("roles/storage.",),
    "artifactregistry": ("roles/artifactregistry.",),
    "run": ("roles/run.admin", "roles/run.developer", "roles/run.invoker", "roles/run.viewer"),
    "iam": ("roles/iam.serviceAccount", "roles/iam.workloadIdentityUser"),
    "secretmanager": ("roles/secretmanager.",),
    "cloudkms": ("roles/cloudkms.",),
    "compute": ("roles/compute.networkUser", "roles/compute.networkViewer", "roles/compute.networkAdmin"),
}


def takes(resource: str, role: str) -> bool:
    """Whether a resource takes a role in its policy."""
    service = resource.removeprefix("//").partition(".")[0]
    if service == "cloudresourcemanager":
        return not role.startswith("roles/storage.legacy")
    return role.startswith(TAKES[service]) and role != "roles/iam.serviceAccountCreator"


@cache
def roles() -> dict[str, frozenset[str]]:
    """Role name to its permissions."""
    data = json.loads(files(__package__).joinpath("roles.json").read_text(encoding="utf-8"))
    return {name: frozenset(role["includedPermissions"]) for name, role in data["roles"].items()}


@dataclass
class Binding:
    """One member in one role on one resource; it acts from `acts_from` on (seconds on the world's clock)."""

    role: str
    member: str
    acts_from: float = 0.0


@dataclass
class Iam:
    """All policies. `delay` is how long a new grant takes to act; `parents` climbs from a resource to its project."""

    now: Callable[[], float]
    delay: float = 0.0
    policies: dict[str, list[Binding]] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    groups: dict[str, frozenset[str]] = field(default_factory=dict)
    denied: set[tuple[str, str]] = field(default_factory=set)

    def grant(self, resource: str, role: str, *members: str) -> None:
        """Give a role at once, as if it had been given long ago."""
        self.policies.setdefault(resource, []).extend(Binding(role, member) for member in members)

    def policy(self, resource: str) -> dict[str, Any]:
        """The policy as getIamPolicy answers it."""
        members: dict[str, list[str]] = {}
        for binding in self.policies.get(resource, []):
            members.setdefault(binding.role, []).append(binding.member)
        bindings = [{"role": role, "members": names} for role, names in members.items()]
        return {"version": 1, "etag": self.etag(resource), "bindings": bindings}

    def etag(self, resource: str) -> str:
        """Changes whenever the policy does; base64, as the real one is."""
        text = json.dumps([(item.role, item.member) for item in self.policies.get(resource, [])])
        return b64encode(str(sum(map(ord, text)) * 31 + len(text)).encode()).decode()

    def replace(self, resource: str, policy: dict[str, Any]) -> None:
        """setIamPolicy: what was there keeps acting, what is new acts after the delay."""
        before = {(item.role, item.member): item for item in self.policies.get(resource, [])}
        wanted = [(item["role"], member) for item in policy.get("bindings", []) for member in item.get("members", [])]
        acts_from = self.now() + self.delay
        self.policies[resource] = [before.get(key) or Binding(*key, acts_from) for key in wanted]

    def allowed(self, principal: str, permission: str, resource: str) -> bool:
        """Whether a call by `principal` would pass now; what a deny policy takes, no role gives."""
        names = self._identities(principal)
        if any((name, permission) in self.denied for name in names):
            return False
        return any(
            binding.member in names and permission in roles().get(binding.role, frozenset())
            for binding in self._acting(resource)
        )

    def troubleshoot(self, principal: str, permission: str, resource: str, *, may_look: bool) -> Access:
        """The policy troubleshooter's answer: unknown where the asker cannot see a policy or a group's members."""
        if not may_look:
            return "UNKNOWN_INFO"
        if (principal, permission) in self.denied:
            return "CANNOT_ACCESS"
        if any(
            binding.member in {principal, "allUsers", *self._convenience(principal)}
            and permission in roles().get(binding.role, frozenset())
            for binding in self._acting(resource)
        ):
            return "CAN_ACCESS"
        hidden = any(
            binding.member.startswith("group:") and permission in roles().get(binding.role, frozenset())
            for binding in self._acting(resource)
        )
        return "UNKNOWN_INFO" if hidden else "CANNOT_ACCESS"

    def forget(self, member: str) -> None:
        """What becomes of a deleted account's bindings: they stay, under a name that no account has."""
        for bindings in self.policies.values():
            for binding in bindings:
                if binding.member == member:
                    binding.member = f"deleted:{member}?uid=1"

    def permissions_of(self, principal: str) -> dict[str, set[str]]:
        """Every permission that a principal holds, by the resource it is granted on; delay or not."""
        names = self._identities(principal)
        held: dict[str, set[str]] = {}
        for resource, bindings in self.policies.items():
            for binding in bindings:
                if binding.member in names:
                    held.setdefault(resource, set()).update(roles()[binding.role])
        return held

    def _identities(self, principal: str) -> set[str]:
        groups = {group for group, members in self.groups.items() if principal in members}
        return {principal, "allAuthenticatedUsers", "allUsers", *groups, *self._convenience(principal)}

    def _convenience(self, principal: str) -> set[str]:
        """projectOwner:P and the like, by which a bucket's own policy names holders of a basic role on the project."""
        values = {"roles/owner": "projectOwner", "roles/editor": "projectEditor", "roles/viewer": "projectViewer"}
        return {
            f"{values[binding.role]}:{place.rsplit('/', 1)[1]}"
            for place, bindings in self.policies.items()
            if place.startswith("//cloudresourcemanager.")
            for binding in bindings
            if binding.member == principal and binding.role in values and binding.acts_from <= self.now()
        }

    def _acting(self, resource: str) -> Iterable[Binding]:
        place: str | None = resource
        while place is not None:
            yield from (item for item in self.policies.get(place, []) if item.acts_from <= self.now())
            place = self.parents.get(place)
