"""The seam to Google Cloud: every call to a Google client goes through here, and nothing else knows their types.

Clients are made on first use and spoken to over REST; IAM admin exists over gRPC only. What comes back is plain data
(dicts spelled as the protos spell them), and Google's errors are mapped once, by `mapped`.
"""

from __future__ import annotations

from coldstream.deploy.google.artifacts import ArtifactCalls
from coldstream.deploy.google.clients import Endpoints, default_credentials
from coldstream.deploy.google.iam import Access, IamCalls
from coldstream.deploy.google.mapping import mapped
from coldstream.deploy.google.operations import Pending, wait
from coldstream.deploy.google.project import ProjectCalls
from coldstream.deploy.google.run import RunCalls

__all__ = ["Access", "Endpoints", "Google", "Pending", "default_credentials", "mapped", "wait"]


class Google(ProjectCalls, IamCalls, ArtifactCalls, RunCalls):
    """One caller on Google Cloud; safe to use from several threads."""
