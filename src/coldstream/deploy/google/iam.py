"""IAM: permissions, policies, service accounts, identity tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from coldstream.deploy.google.clients import KEYS, NETWORKS, ONCE, SECRETS, Clients
from coldstream.deploy.google.mapping import asked, called, module
from coldstream.deploy.target import Kind, Resource
from coldstream.errors import ResourceConflict, ResourceNotFound

Access = Literal["yes", "no", "unknown"]


@dataclass(frozen=True, slots=True)
class _PlainApi:
    """How an API without a client among the dependencies spells its policies; `verb` comes before the method's name."""

    host: str
    path: str
    verb: str
    version: str


_PLAIN: Mapping[Kind, _PlainApi] = MappingProxyType(
    {
        Kind.SECRET: _PlainApi(SECRETS, "v1", ":", "options.requestedPolicyVersion"),
        Kind.KEY: _PlainApi(KEYS, "v1", ":", "options.requestedPolicyVersion"),
        Kind.SUBNET: _PlainApi(NETWORKS, "compute/v1", "/", "optionsRequestedPolicyVersion"),
    }
)


def _place(resource: Resource, method: str) -> tuple[str, str]:
    """(host, path) of a method on a resource."""
    api = _PLAIN[resource.kind]
    return api.host, f"{api.path}/{resource.name}{api.verb}{method}"


class IamCalls(Clients):
    """What is asked and written about access."""

    @asked
    def test_permissions(self, resource: Resource, permissions: Sequence[str]) -> frozenset[str]:
        """Those of the permissions that the caller holds on the resource."""
        if resource.kind is Kind.BUCKET:
            return frozenset(self._bucket(resource.name).test_iam_permissions(list(permissions), **ONCE))
        if resource.kind in _PLAIN:
            body = {"permissions": list(permissions)}
            answer = self._json("POST", *_place(resource, "testIamPermissions"), body)
            return frozenset(answer.get("permissions", []))
        request = {"resource": self._iam_name(resource), "permissions": list(permissions)}
        return frozenset(self._iam_client(resource).test_iam_permissions(request, **ONCE).permissions)

    @asked
    def policy(self, resource: Resource) -> dict[str, Any]:
        """`{"bindings": [{"role", "members", "condition"?}], "etag"}`."""
        if resource.kind is Kind.BUCKET:
            policy = self._bucket(resource.name).get_iam_policy(requested_policy_version=3, **ONCE)
            bindings = [{**item, "members": sorted(item["members"])} for item in policy.bindings]
            return {"bindings": bindings, "etag": policy.etag}
        if resource.kind in _PLAIN:
            answer = self._json("GET", *_place(resource, f"getIamPolicy?{_PLAIN[resource.kind].version}=3"))
            return {"bindings": answer.get("bindings", []), "etag": answer.get("etag", "")}
        request = {"resource": self._iam_name(resource), "options": {"requested_policy_version": 3}}
        return _plain_policy(self._iam_client(resource).get_iam_policy(request, **ONCE))

    @called
    def set_policy(self, resource: Resource, policy: Mapping[str, Any]) -> None:
        """Write a policy that `policy` read; its etag guards against others.

        Raises:
            ResourceConflict: the policy changed in between.
        """
        if resource.kind is Kind.BUCKET:
            bucket = self._bucket(resource.name)
            wanted = bucket.get_iam_policy(requested_policy_version=3, **ONCE)
            if wanted.etag != policy["etag"]:
                raise ResourceConflict(f"the policy of {resource} changed meanwhile")
            wanted.bindings = [{**item, "members": set(item["members"])} for item in policy["bindings"]]
            bucket.set_iam_policy(wanted, **ONCE)
            return
        if resource.kind in _PLAIN:
            self._json("POST", *_place(resource, "setIamPolicy"), {"policy": _versioned(policy)})
            return
        request = {"resource": self._iam_name(resource), "policy": _proto_policy(policy)}
        self._iam_client(resource).set_iam_policy(request, **ONCE)

    @asked
    def troubleshoot(self, email: str, permission: str, resource: Resource) -> Access:
        """Whether another principal holds a permission, folders, groups and deny policies included.

        Version 3 alone knows deny policies (https://cloud.google.com/policy-intelligence/docs/troubleshoot-access).
        """
        access = {"principal": email, "fullResourceName": resource.full_name, "permission": permission}
        host = "policytroubleshooter.googleapis.com"
        answer = self._json("POST", host, "v3/iam:troubleshoot", {"accessTuple": access})
        known: dict[str, Access] = {"CAN_ACCESS": "yes", "CANNOT_ACCESS": "no"}
        return known.get(answer.get("overallAccessState", ""), "unknown")

    @asked
    def role_permissions(self, role: str) -> frozenset[str]:
        """What a role contains."""
        return frozenset(self._iam().get_role({"name": role}, **ONCE).included_permissions)

    def account_exists(self, project: str, email: str) -> bool:
        """Whether the service account is there.

        Raises:
            PermissionRefused: the caller may not see it.
        """
        try:
            self._account(f"projects/{project}/serviceAccounts/{email}")
        except ResourceNotFound:
            return False
        return True

    @asked
    def _account(self, name: str) -> None:
        self._iam().get_service_account(name=name, **ONCE)

    @called
    def create_account(self, project: str, email: str, description: str) -> None:
        """Make a service account."""
        account_id = email.split("@", 1)[0]
        account = {"display_name": account_id, "description": description}
        request = {"name": f"projects/{project}", "account_id": account_id, "service_account": account}
        self._iam().create_service_account(request, **ONCE)

    @called
    def delete_account(self, project: str, email: str) -> None:
        """Remove a service account."""
        self._iam().delete_service_account(name=f"projects/{project}/serviceAccounts/{email}", **ONCE)

    @asked
    def identity_token(self, email: str, audience: str) -> str:
        """An identity token of a service account, made by IAM Credentials; any kind of caller may ask for one."""
        request = {"name": f"projects/-/serviceAccounts/{email}", "audience": audience, "include_email": True}
        return str(self._tokens().generate_id_token(request, **ONCE).token)

    def _iam_client(self, resource: Resource) -> Any:
        return {
            Kind.PROJECT: self._projects,
            Kind.REPOSITORY: self._registry,
            Kind.ACCOUNT: self._iam,
            Kind.SERVICE: self._run,
        }[resource.kind]()

    def _iam_name(self, resource: Resource) -> str:
        if resource.kind is Kind.PROJECT:
            return f"projects/{resource.name}"
        if resource.kind is Kind.ACCOUNT:
            return f"projects/{resource.project}/serviceAccounts/{resource.name}"
        return resource.name


def _plain_policy(policy: Any) -> dict[str, Any]:
    json_format = module("google.protobuf.json_format")
    bindings = [json_format.MessageToDict(item, preserving_proto_field_name=True) for item in policy.bindings]
    return {"bindings": bindings, "etag": policy.etag}


def _versioned(policy: Mapping[str, Any]) -> dict[str, Any]:
    version = 3 if any("condition" in item for item in policy["bindings"]) else 1
    return {"version": version, "etag": policy["etag"], "bindings": policy["bindings"]}


def _proto_policy(policy: Mapping[str, Any]) -> Any:
    json_format = module("google.protobuf.json_format")
    version = _versioned(policy)["version"]
    message = module("google.iam.v1.policy_pb2").Policy(version=version, etag=policy["etag"])
    for item in policy["bindings"]:
        json_format.ParseDict(item, message.bindings.add())
    return message
