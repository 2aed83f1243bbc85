"""Every error that Coldstream raises on purpose, with its HTTP status and its CLI exit code.

    ColdstreamError                    500   1
    ├── SettingsError                  500  10   coldstream.toml, an option or an environment variable
    ├── LocationError                  400  11   a URI that is not one of ours
    ├── MissingExtra                   500  12   an optional package is not installed
    ├── StoreError                     503  20   the object store said no, or nothing
    │   ├── ObjectNotFound             503  21   no such bucket, folder or object
    │   ├── AccessDenied               503  22   401, 403, no usable credentials
    │   ├── StoreUnavailable           503  23   retries and the deadline are spent
    │   ├── ObjectChanged              503  24   replaced while it was being read
    │   ├── ChecksumMismatch           503  25   the bytes are not the object's, twice
    │   └── BadResponse                503  26   a server that ignores ranges, or sends too much or too little
    ├── CheckpointError                503  30   the folder is not a checkpoint that can be loaded
    │   ├── NoConfig                   503  31   no config.json, or one that is not JSON
    │   ├── NoWeights                  503  32   no safetensors (pytorch_model.bin is refused)
    │   ├── ShardMissing               503  33   the index names a file that is not there
    │   ├── HeaderError                503  34   a truncated or corrupt safetensors header
    │   ├── IndexMismatch              503  35   index and files disagree
    │   ├── UnsafeName                 503  36   a name that leaves the checkpoint's folder
    │   └── CopyRefused                503  37   a packed copy that is damaged, or of another checkpoint
    ├── ModelError                     503  40   the checkpoint cannot become a model
    │   ├── UnknownArchitecture        503  41
    │   ├── UnsupportedConfig          503  42   an architecture we know with a value that we do not
    │   ├── ParameterMismatch          503  43   missing, unexpected, unfilled or misshapen parameters
    │   └── TokenizerError             503  44
    │       └── ConvertedUnfit         503  45   a converted tokenizer that may not be used: its source is read instead
    ├── RequestError                   400  50   the caller can mend it
    │   ├── InvalidRequest             422  51   a field that is missing, unknown or of the wrong type
    │   ├── PromptTooLong              413  52
    │   ├── UnknownTask                404  53
    │   ├── Unauthorized               401  54
    │   ├── TooManyRequests            429  55   the queue is full; `retry_after` says when to come back
    │   ├── NotReady                   503  56   the model is still loading
    │   ├── DeadlineExceeded           504  57
    │   └── TooCostly                  400  58   work on what the caller sent passed a limit of time, memory or size
    ├── EngineError                    500  60   a fault of ours while generating
    ├── PortInUse                      500  70
    ├── OutOfMemory                    503  71   the model, or a request, does not fit in the memory that is here
    ├── DeviceUnavailable              503  72   the GPU that was asked for is not there, or torch cannot use it
    └── DeployError                    500  80   Google Cloud said no
        ├── ResourceNotFound           500  81   no such project, bucket, repository, account or service
        ├── ResourceExists             500  82   it is there already
        ├── ResourceConflict           500  83   another caller changed it meanwhile
        ├── PermissionRefused          500  84   the caller may not, or has no credentials
        ├── ApiDisabled                500  85   the project has not turned that Google API on
        ├── AccessBarred               500  86   a perimeter, billing or the quota project stops the call, not a role
        └── CloudUnavailable           500  87   Google Cloud did not answer, or said to come back later

A message says what was wrong, where (URI, tensor, byte, field) and what to do next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What commands a terminal, turns the order of what follows, or is no character: no name means anything by it."""


def printable(text: str) -> str:
    """The text for a terminal, a log or JSON: names in files of strangers may hold anything."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


class ColdstreamError(Exception):
    """Root of the tree. `http_status` is a hint for the server, `exit_code` for the command line."""

    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class SettingsError(ColdstreamError):
    """A setting is unknown, has the wrong type, or contradicts another one."""

    exit_code = 10


class LocationError(ColdstreamError):
    """A URI that is malformed or whose scheme is not supported."""

    http_status = 400
    exit_code = 11


class MissingExtra(ColdstreamError):
    """An optional package is needed; the message names the extra to install."""

    exit_code = 12


class StoreError(ColdstreamError):
    """The object store refused, failed or contradicted itself."""

    http_status = 503
    exit_code = 20


class ObjectNotFound(StoreError):
    """No such bucket, folder or object."""

    exit_code = 21


class AccessDenied(StoreError):
    """The store answered 401 or 403, or there are no usable credentials."""

    exit_code = 22


class StoreUnavailable(StoreError):
    """Retries, or the deadline, are spent."""

    exit_code = 23


class ObjectChanged(StoreError):
    """The object was replaced after it had been pinned."""

    exit_code = 24


class ChecksumMismatch(StoreError):
    """The bytes that arrived are not the object's, and a second fetch did not mend it."""

    exit_code = 25


class BadResponse(StoreError):
    """The server ignored a range, or sent more or fewer bytes than it was asked for."""

    exit_code = 26


class CheckpointError(ColdstreamError):
    """The folder is not a checkpoint that can be loaded."""

    http_status = 503
    exit_code = 30


class NoConfig(CheckpointError):
    """There is no config.json, or it is not a JSON object."""

    exit_code = 31


class NoWeights(CheckpointError):
    """There are no safetensors files; pickled weights are refused."""

    exit_code = 32


class ShardMissing(CheckpointError):
    """The index names a file that is not in the folder."""

    exit_code = 33


class HeaderError(CheckpointError):
    """A safetensors header is truncated, corrupt or hostile."""

    exit_code = 34


class IndexMismatch(CheckpointError):
    """The index and the files disagree about which tensor is where."""

    exit_code = 35


class UnsafeName(CheckpointError):
    """A name in the index would leave the checkpoint's folder."""

    exit_code = 36


class CopyRefused(CheckpointError):
    """A packed copy that is damaged, or was made of another checkpoint than the one that lies beside it."""

    exit_code = 37


class ModelError(ColdstreamError):
    """The checkpoint is sound, but cannot become a model."""

    http_status = 503
    exit_code = 40


class UnknownArchitecture(ModelError):
    """Neither the native decoder nor the fallback knows the architecture."""

    exit_code = 41


class UnsupportedConfig(ModelError):
    """A known architecture with a configuration value that would change its results and is not implemented."""

    exit_code = 42


class ParameterMismatch(ModelError):
    """Parameters are missing, unexpected, unfilled or of the wrong shape; the message names them."""

    exit_code = 43


class TokenizerError(ModelError):
    """The tokenizer or its chat template is missing or cannot be used."""

    exit_code = 44


class ConvertedUnfit(TokenizerError):
    """A converted tokenizer is damaged, of another version, of other declarations, or does not what its source does."""

    exit_code = 45


class RequestError(ColdstreamError):
    """Something that the caller of the API can mend.

    `field` names the part of the request, where there is one; `allowed` are the values it may have, where they are few;
    `schema` is a JSON Schema of what it may be, where that helps.
    """

    http_status = 400
    exit_code = 50

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        allowed: tuple[str, ...] = (),
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.allowed = allowed
        self.schema = schema


class InvalidRequest(RequestError):
    """A field is missing, unknown, of the wrong type or out of range."""

    http_status = 422
    exit_code = 51


class PromptTooLong(RequestError):
    """The prompt does not fit in the model's context."""

    http_status = 413
    exit_code = 52


class UnknownTask(RequestError):
    """No task or model of that name; the message lists those that exist."""

    http_status = 404
    exit_code = 53


class Unauthorized(RequestError):
    """No API key, or a wrong one."""

    http_status = 401
    exit_code = 54


class TooManyRequests(RequestError):
    """The queue is full. `retry_after` is in seconds, from the measured rate."""

    http_status = 429
    exit_code = 55

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(RequestError):
    """The model is still loading. `retry_after` is in seconds, from the measured rate of the load."""

    http_status = 503
    exit_code = 56

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(RequestError):
    """The request's deadline passed before it was finished."""

    http_status = 504
    exit_code = 57


class TooCostly(RequestError):
    """Work on what the caller sent passed a limit of time, memory or size; the message names the limit."""

    exit_code = 58


class EngineError(ColdstreamError):
    """A fault of ours while generating; the request ends, the engine goes on."""

    exit_code = 60


class PortInUse(ColdstreamError):
    """The port is taken."""

    exit_code = 70


class OutOfMemory(ColdstreamError):
    """The model, or a request, does not fit in the memory that this machine, container or GPU has."""

    http_status = 503
    exit_code = 71


class DeviceUnavailable(ColdstreamError):
    """CUDA was asked for, and there is no GPU, no driver that runs torch's CUDA, or no CUDA in torch."""

    http_status = 503
    exit_code = 72


class DeployError(ColdstreamError):
    """A step of a deployment failed; the message names what was made and the next command."""

    exit_code = 80


class ResourceNotFound(DeployError):
    """Google Cloud has no such resource, or hides it from this caller."""

    exit_code = 81


class ResourceExists(DeployError):
    """The resource that was to be made is there already."""

    exit_code = 82


class ResourceConflict(DeployError):
    """Another caller changed the resource between reading and writing it."""

    exit_code = 83


class PermissionRefused(DeployError):
    """The caller lacks a permission, or has no usable credentials."""

    exit_code = 84


class ApiDisabled(DeployError):
    """The project has not turned on the Google API that was called."""

    exit_code = 85


class AccessBarred(DeployError):
    """Something other than a missing role stops the call: a perimeter, billing, the quota project, requester pays."""

    exit_code = 86


class CloudUnavailable(DeployError):
    """Google Cloud did not answer, or asked to come back later; asking again may help."""

    exit_code = 87
