"""Derives roles.json from a clone of the public iam-dataset; by hand, when roles are added.

    python tests/fakecloud/derive_roles.py PATH_TO_CLONE > tests/fakecloud/roles.json

Google publishes what a predefined role contains through `roles.list` alone, which wants an account. The repository
iann0036/iam-dataset keeps a daily copy of its answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

ROLES = [
    "artifactregistry.admin",
    "artifactregistry.reader",
    "artifactregistry.repoAdmin",
    "artifactregistry.writer",
    "browser",
    "cloudbuild.builds.builder",
    "cloudbuild.builds.editor",
    "cloudbuild.builds.viewer",
    "cloudkms.admin",
    "cloudkms.cryptoKeyEncrypterDecrypter",
    "cloudkms.viewer",
    "cloudquotas.viewer",
    "compute.networkAdmin",
    "compute.networkUser",
    "compute.networkViewer",
    "iam.roleViewer",
    "iam.securityReviewer",
    "iam.serviceAccountAdmin",
    "iam.serviceAccountCreator",
    "iam.serviceAccountOpenIdTokenCreator",
    "iam.serviceAccountTokenCreator",
    "iam.serviceAccountUser",
    "iam.serviceAccountViewer",
    "logging.logWriter",
    "logging.viewer",
    "orgpolicy.policyViewer",
    "owner",
    "editor",
    "viewer",
    "resourcemanager.projectIamAdmin",
    "run.admin",
    "run.builder",
    "run.developer",
    "run.invoker",
    "run.servicesInvoker",
    "run.serviceAgent",
    "run.viewer",
    "secretmanager.admin",
    "secretmanager.secretAccessor",
    "serviceusage.serviceUsageAdmin",
    "serviceusage.serviceUsageConsumer",
    "serviceusage.serviceUsageViewer",
    "storage.admin",
    "storage.bucketViewer",
    "storage.legacyBucketOwner",
    "storage.legacyBucketReader",
    "storage.legacyObjectOwner",
    "storage.legacyObjectReader",
    "storage.objectAdmin",
    "storage.objectCreator",
    "storage.objectUser",
    "storage.objectViewer",
]
SERVICES = [
    "artifactregistry.",
    "billing.",
    "cloudbuild.",
    "cloudkms.cryptoKeys.",
    "cloudkms.cryptoKeyVersions.useTo",
    "cloudkms.keyRings.",
    "cloudquotas.",
    "compute.networks.get",
    "compute.subnetworks.",
    "iam.",
    "logging.",
    "orgpolicy.",
    "policysimulator.",
    "policytroubleshooter.",
    "resourcemanager.",
    "run.",
    "secretmanager.",
    "serviceusage.",
    "storage.",
]


def main(clone: str) -> None:
    """Print the roles above with their permissions on the services that the fake knows."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", clone, *arguments], check=True, capture_output=True, text=True).stdout

    roles = {}
    for name in ROLES:
        role = json.loads(git("show", f"HEAD:gcp/roles/{name}.json"))
        kept = [item for item in role["includedPermissions"] if item.startswith(tuple(SERVICES))]
        roles[role["name"]] = {"title": role["title"], "includedPermissions": kept}
    commit, date = git("log", "-1", "--format=%H %cs", "--", "gcp/roles").split()
    derived = datetime.now(UTC).date().isoformat()
    repository = "https://github.com/iann0036/iam-dataset"
    source = {"repository": repository, "commit": commit, "date": date, "derived": derived}
    json.dump({"source": source, "roles": roles}, sys.stdout, indent=0, sort_keys=True)


if __name__ == "__main__":
    main(sys.argv[1])
