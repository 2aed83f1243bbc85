"""Google's exceptions as ours, and its modules on first use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from coldstream.deploy.clock import Clock
from coldstream.errors import (
    AccessBarred,
    ApiDisabled,
    CloudUnavailable,
    DeployError,
    MissingExtra,
    PermissionRefused,
    ResourceConflict,
    ResourceExists,
    ResourceNotFound,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Seconds before each further try; a client's own retries are off, since they sleep on another clock.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)

# What a 403 (or a 400 of Cloud Storage) says when no role would help -> what does. Reasons are those of
# https://cloud.google.com/apis/design/errors, and the words those of the services themselves.
_BARRED: Mapping[str, str] = MappingProxyType(
    {
        "SECURITY_POLICY_VIOLATED": "a VPC Service Controls perimeter stops it; ask for an access level or a rule",
        "vpcServiceControlsUniqueIdentifier": "a VPC Service Controls perimeter stops it; ask for an access level",
        "BILLING_DISABLED": "billing is off; link an account: https://console.cloud.google.com/billing/linkedaccount",
        "requires billing to be enabled": "billing is off; link an account: https://console.cloud.google.com/billing",
        "billing account for the owning project is disabled": "billing is off in the bucket's project",
        "USER_PROJECT_DENIED": "the caller lacks serviceusage.services.use on the project that calls are charged to",
        "does not have required permission to use project": "the caller lacks serviceusage.services.use on the project",
        "requester pays bucket": "the bucket's readers pay, which a service cannot; copy the model",
    }
)


@contextmanager
def mapped() -> Iterator[None]:
    """Google's exceptions as ours."""
    requests = module("requests")
    api, auth = module("google.api_core.exceptions"), module("google.auth.exceptions")
    try:
        yield
    except api.GoogleAPICallError as exc:
        raise _ours(api, exc) from exc
    except auth.TransportError as exc:
        raise CloudUnavailable(f"Google Cloud could not be reached: {exc}") from exc
    except auth.GoogleAuthError as exc:
        raise PermissionRefused(f"the credentials could not be used: {exc}") from exc
    except (requests.ConnectionError, requests.Timeout) as exc:
        raise CloudUnavailable(f"Google Cloud could not be reached: {exc}") from exc
    except requests.RequestException as exc:
        raise DeployError(f"Google Cloud could not be reached: {exc}") from exc


def _ours(api: Any, exc: Exception) -> DeployError:
    said = _said(exc)
    if isinstance(exc, api.NotFound):
        return ResourceNotFound(said)
    if isinstance(exc, api.Aborted):
        return ResourceConflict(said)
    if isinstance(exc, api.Conflict):
        aborted = "ABORTED" in str(exc) or "concurrent" in str(exc) or "Conflict for resource" in str(exc)
        return (ResourceConflict if aborted else ResourceExists)(said)
    if isinstance(exc, api.PreconditionFailed):
        return ResourceExists(said)
    if isinstance(exc, api.Forbidden | api.Unauthorized | api.BadRequest):
        return _refusal(api, exc, said)
    if isinstance(exc, api.TooManyRequests | api.ServerError) and not isinstance(exc, api.MethodNotImplemented):
        return CloudUnavailable(f"Google Cloud answered: {said}")
    return DeployError(f"Google Cloud answered: {said}")


def _refusal(api: Any, exc: Exception, said: str) -> DeployError:
    if (why := _barred(exc)) is not None:
        return AccessBarred(f"{said}; {why}")
    if isinstance(exc, api.BadRequest):
        return DeployError(f"Google Cloud answered: {said}")
    return ApiDisabled(said) if _is_disabled(exc) else PermissionRefused(said)


def _barred(exc: Exception) -> str | None:
    text = f"{getattr(exc, 'reason', None)} {exc}"
    return next((why for mark, why in _BARRED.items() if mark in text), None)


def _said(exc: Exception) -> str:
    return re.sub(r"^(GET|POST|PUT|PATCH|DELETE) \S+: ", "", str(getattr(exc, "message", "") or exc))


def _is_disabled(exc: Exception) -> bool:
    return getattr(exc, "reason", None) == "SERVICE_DISABLED" or "has not been used in project" in str(exc)


class _Timed(Protocol):
    @property
    def clock(self) -> Clock: ...


_S = TypeVar("_S", bound=_Timed)


def called(function: Callable[Concatenate[_S, _P], _R]) -> Callable[Concatenate[_S, _P], _R]:
    """A call that changes something; its errors come out as ours. Only what Google surely left undone is repeated."""
    return _repeated(function, lambda exc: _too_many(exc))


def asked(function: Callable[Concatenate[_S, _P], _R]) -> Callable[Concatenate[_S, _P], _R]:
    """A call that only reads: asked again for a quarter of a minute when Google says 429 or 5xx, or nothing."""
    return _repeated(function, lambda exc: True)


def _too_many(exc: CloudUnavailable) -> bool:
    return isinstance(exc.__cause__, module("google.api_core.exceptions").TooManyRequests)


def _repeated(
    function: Callable[Concatenate[_S, _P], _R], again: Callable[[CloudUnavailable], bool]
) -> Callable[Concatenate[_S, _P], _R]:
    @wraps(function)
    def inner(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        for pause in PAUSES:
            try:
                with mapped():
                    return function(self, *args, **kwargs)
            except CloudUnavailable as exc:
                if not again(exc):
                    raise
                self.clock.sleep(pause)
        with mapped():
            return function(self, *args, **kwargs)

    return inner


def module(name: str) -> Any:
    """Google's modules on first use: importing them all costs a second, and their stubs are patchy.

    Raises:
        MissingExtra: they are not installed.
    """
    try:
        return import_module(name)
    except ImportError as exc:
        raise MissingExtra(f"{name} is not installed; run `pip install 'coldstream[deploy]'`") from exc
