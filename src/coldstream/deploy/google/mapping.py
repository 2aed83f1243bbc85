"""Google's exceptions as ours, and its modules on first use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

from coldstream.errors import (
    ApiDisabled,
    DeployError,
    MissingExtra,
    PermissionRefused,
    ResourceConflict,
    ResourceExists,
    ResourceNotFound,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


@contextmanager
def mapped() -> Iterator[None]:
    """Google's exceptions as ours."""
    requests = module("requests")
    api, auth = module("google.api_core.exceptions"), module("google.auth.exceptions")
    try:
        yield
    except api.NotFound as exc:
        raise ResourceNotFound(_said(exc)) from exc
    except api.Aborted as exc:
        raise ResourceConflict(_said(exc)) from exc
    except api.Conflict as exc:
        aborted = "ABORTED" in str(exc) or "concurrent" in str(exc) or "Conflict for resource" in str(exc)
        raise (ResourceConflict if aborted else ResourceExists)(_said(exc)) from exc
    except api.PreconditionFailed as exc:
        raise ResourceExists(_said(exc)) from exc
    except (api.Forbidden, api.Unauthorized) as exc:
        raise (ApiDisabled if _is_disabled(exc) else PermissionRefused)(_said(exc)) from exc
    except api.GoogleAPICallError as exc:
        raise DeployError(f"Google Cloud answered: {_said(exc)}") from exc
    except auth.GoogleAuthError as exc:
        raise PermissionRefused(f"the credentials could not be used: {exc}") from exc
    except requests.RequestException as exc:
        raise DeployError(f"Google Cloud could not be reached: {exc}") from exc


def _said(exc: Exception) -> str:
    return re.sub(r"^(GET|POST|PUT|PATCH|DELETE) \S+: ", "", str(getattr(exc, "message", "") or exc))


def _is_disabled(exc: Exception) -> bool:
    return getattr(exc, "reason", None) == "SERVICE_DISABLED" or "has not been used in project" in str(exc)


def called(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A call to a client whose errors come out as ours."""

    @wraps(function)
    def inner(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with mapped():
            return function(*args, **kwargs)

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
