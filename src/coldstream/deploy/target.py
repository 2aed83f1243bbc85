"""The names of everything that a deployment touches; pure.

Resource names follow https://cloud.google.com/iam/docs/full-resource-names.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from urllib.parse import urlsplit

from coldstream.errors import SettingsError
from coldstream.settings import DeploySettings

LABELS = {"managed-by": "coldstream"}
# What is printed into shell lines and paths consists of these characters and no others.
PROJECT = re.compile(r"([a-z0-9-]+(\.[a-z0-9-]+)+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
SERVICE = re.compile(r"[a-z]([a-z0-9-]{0,37}[a-z0-9])?")
REGION = re.compile(r"[a-z]+-[a-z]+[0-9]{1,2}")
REPOSITORY = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
ACCOUNT = re.compile(r"[a-z0-9][a-z0-9.-]*@[a-z0-9-]+(\.[a-z0-9-]+)+")
MEMBER = re.compile(r"(user|serviceAccount|group):[\w.+-]+@[\w.-]+|principal(Set)?://[\w./@:%-]+", re.ASCII)
IMAGE = re.compile(r"[a-z0-9][a-zA-Z0-9._/:@-]{0,500}")
POOL = re.compile(r"projects/[a-z0-9.:-]+/locations/[a-z0-9-]+/workerPools/[a-z0-9-]+")
NETWORK = re.compile(r"(projects/[a-z0-9.:-]+/global/networks/)?[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
SUBNET = re.compile(
    r"(projects/[a-z0-9.:-]+/regions/(?P<region>[a-z0-9-]+)/subnetworks/)?[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
)
KEY = re.compile(
    r"projects/[a-z0-9.:-]+/locations/(?P<location>[a-z0-9-]+)/keyRings/[\w-]+/cryptoKeys/[\w-]+", re.ASCII
)
SECRET = re.compile(r"(projects/[a-z0-9.:-]+/secrets/)?[A-Za-z0-9_-]{1,255}")
# https://cloud.google.com/run/docs/configuring/services/labels
LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
GLOBAL = "global"


class Kind(StrEnum):
    """What may carry an IAM policy of its own."""

    PROJECT = "project"
    BUCKET = "bucket"
    REPOSITORY = "repository"
    ACCOUNT = "account"
    SERVICE = "service"
    SECRET = "secret"  # noqa: S105  the kind, not one
    KEY = "key"
    SUBNET = "subnet"


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing on Google Cloud. `name` is what its own API calls it: an id, a bucket, an e-mail, a path."""

    kind: Kind
    name: str
    project: str

    @property
    def full_name(self) -> str:
        """The full resource name, as the policy troubleshooter wants it."""
        return {
            Kind.PROJECT: f"//cloudresourcemanager.googleapis.com/projects/{self.name}",
            Kind.BUCKET: f"//storage.googleapis.com/projects/_/buckets/{self.name}",
            Kind.REPOSITORY: f"//artifactregistry.googleapis.com/{self.name}",
            Kind.ACCOUNT: f"//iam.googleapis.com/projects/{self.project}/serviceAccounts/{self.name}",
            Kind.SERVICE: f"//run.googleapis.com/{self.name}",
            Kind.SECRET: f"//secretmanager.googleapis.com/{self.name}",
            Kind.KEY: f"//cloudkms.googleapis.com/{self.name}",
            Kind.SUBNET: f"//compute.googleapis.com/{self.name}",
        }[self.kind]

    def __str__(self) -> str:
        return f"{self.kind} {self.name.rsplit('/', 1)[-1]}"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a deployment goes. Accounts are e-mail addresses.

    `model_buckets` are the gs:// buckets that it starts from, `photo_buckets` those that requests may name photos in.
    `own_image` is an image that is not built here, `secret` the Secret Manager resource that holds API keys, `number`
    the project's number, where it is known. `subnet` is the one that all traffic goes through, maybe another project's.
    """

    project: str
    region: str
    service: str
    repository: str
    source_bucket: str
    build_account: str
    runtime_account: str
    invoker_account: str
    model_buckets: tuple[str, ...]
    public: bool = False
    photo_buckets: tuple[str, ...] = ()
    build_region: str | None = None
    own_image: str | None = None
    secret: str | None = None
    caller: str | None = None
    number: str | None = None
    encryption_key: str | None = None
    subnet: Resource | None = None

    @property
    def key(self) -> Resource | None:
        """The customer's key, in whichever project it lies."""
        name = self.encryption_key
        return None if name is None else Resource(Kind.KEY, name, name.split("/")[1])

    @property
    def build_locations(self) -> tuple[str, ...]:
        """Where builds may run, the first choice first: some regions are closed to some projects, global is not."""
        regions = (self.build_region,) if self.build_region else (self.region, GLOBAL)
        return tuple(f"projects/{self.project}/locations/{region}" for region in regions)

    @property
    def location(self) -> str:
        return f"projects/{self.project}/locations/{self.region}"

    @property
    def service_name(self) -> str:
        return f"{self.location}/services/{self.service}"

    @property
    def job_name(self) -> str:
        """One job a service: it is made, run and removed."""
        return f"{self.location}/jobs/{self.service}-job"

    @property
    def repository_name(self) -> str:
        return f"{self.location}/repositories/{self.repository}"

    @property
    def image(self) -> str:
        """The image without its tag."""
        return f"{self.region}-docker.pkg.dev/{self.project.replace(':', '/')}/{self.repository}/coldstream"

    @property
    def image_repository(self) -> Resource | None:
        """The Artifact Registry repository of an own image; None for another registry's."""
        found = _REGISTRY.match(self.own_image or "")
        if found is None:
            return None
        project = found["project"].replace("/", ":")
        name = f"projects/{project}/locations/{found['region']}/repositories/{found['repository']}"
        return Resource(Kind.REPOSITORY, name, project)

    @property
    def accounts(self) -> tuple[str, ...]:
        """Build, runtime, invoker; each once."""
        return tuple(dict.fromkeys((self.build_account, self.runtime_account, self.invoker_account)))

    def dedicated(self, email: str) -> bool:
        """Whether the account is one that Coldstream makes (and destroys) itself."""
        return email in {_email(role, self.project) for role in _account_ids(self.service).values()}

    def resource(self, kind: Kind, name: str | None = None) -> Resource:
        """The project's resource of a kind; buckets and accounts need their name."""
        default = {
            Kind.PROJECT: self.project,
            Kind.REPOSITORY: self.repository_name,
            Kind.SERVICE: self.service_name,
            Kind.SECRET: self.secret,
        }
        return Resource(kind, str(name or default[kind]), self.project)


def check_names(settings: DeploySettings) -> str:
    """Refuse a name that its resource cannot have; the project. Looks at nothing but the settings.

    Raises:
        SettingsError: no project, or an impossible name.
    """
    if settings.project is None:
        raise SettingsError('deploy.project is missing; add project = "..." under [deploy] or pass --project')
    if not PROJECT.fullmatch(settings.project):
        raise SettingsError(f"deploy.project = {settings.project!r} is not a project id (not the name, not the number)")
    if not SERVICE.fullmatch(settings.service):
        raise SettingsError(f"deploy.service = {settings.service!r}: use a-z, 0-9 and -, at most 39 characters")
    for name, pattern, what in _PATTERNS:
        value = getattr(settings, name)
        if value is not None and not pattern.fullmatch(value):
            raise SettingsError(f"deploy.{name} = {value!r} is not {what}")
    _check_options(settings)
    return settings.project


def _check_options(settings: DeploySettings) -> None:
    if settings.subnet is not None and settings.network is None:
        raise SettingsError("deploy.subnet without deploy.network: name both")
    _check_places(settings)
    most = settings.max_instances
    if most is not None and settings.min_instances > most:
        raise SettingsError(f"deploy.min_instances = {settings.min_instances} is more than max_instances = {most}")
    for name, value in settings.labels.items():
        if not LABEL_KEY.fullmatch(name) or not LABEL_VALUE.fullmatch(value):
            raise SettingsError(f"deploy.labels.{name} = {value!r}: use a-z, 0-9, _ and -, at most 63 characters")


def _check_places(settings: DeploySettings) -> None:
    """A service's key and subnet lie in its region (https://cloud.google.com/run/docs/securing/using-cmek)."""
    for name, pattern, part in (("encryption_key", KEY, "location"), ("subnet", SUBNET, "region")):
        found = pattern.fullmatch(getattr(settings, name) or "")
        place = None if found is None else found[part]
        if place not in (None, settings.region):
            raise SettingsError(f"deploy.{name} lies in {place}, and the service in {settings.region}: both must agree")


_PATTERNS = (
    ("region", REGION, "a region, as us-central1"),
    ("build_region", re.compile(f"{REGION.pattern}|{GLOBAL}"), "a region, as us-central1, or global"),
    ("repository", REPOSITORY, "a repository's name: a-z, 0-9 and -, at most 63 characters"),
    ("source_bucket", BUCKET, "a bucket's name, without gs://"),
    ("build_account", re.compile(f"{ACCOUNT.pattern}|default"), "an account's e-mail address"),
    ("runtime_account", ACCOUNT, "an account's e-mail address"),
    ("invoker_account", ACCOUNT, "an account's e-mail address"),
    ("caller", MEMBER, "an IAM member, as user:ann@example.com or principal://iam.googleapis.com/..."),
    ("image", IMAGE, "an image's reference, as region-docker.pkg.dev/project/repository/image:tag"),
    ("build_pool", POOL, "a worker pool, as projects/P/locations/R/workerPools/W"),
    ("network", NETWORK, "a network's name"),
    ("subnet", SUBNET, "a subnet's name"),
    ("encryption_key", KEY, "a key, as projects/P/locations/R/keyRings/K/cryptoKeys/C"),
)
_REGISTRY = re.compile(
    r"(?P<region>[a-z0-9-]+)-docker\.pkg\.dev/(?P<project>([a-z0-9-]+(\.[a-z0-9-]+)+/)?[a-z0-9-]+)/"
    r"(?P<repository>[a-z0-9-]+)/(?P<package>[^:@]+)([:@]|$)"
)


def image_parts(image: str) -> tuple[str, str] | None:
    """(package, tag) of an image in Artifact Registry that is named by its tag; None for any other."""
    found = _REGISTRY.match(image)
    if found is None or "@" in image:
        return None
    return found["package"], image.rpartition(":")[2] if ":" in image.rpartition("/")[2] else "latest"


def _email(account_id: str, project: str) -> str:
    domain, _, name = project.rpartition(":")
    return f"{account_id}@{f'{name}.{domain}' if domain else name}.iam.gserviceaccount.com"


def _source_bucket(project: str) -> str:
    # A dot would ask for proof of who owns the domain, and a name without one ends at 63 characters.
    plain = re.sub(r"[.:]", "-", project)
    stem = plain if len(plain) <= 45 else f"{plain[:38].rstrip('-')}-{sha256(project.encode()).hexdigest()[:6]}"
    return f"{stem}-coldstream-source"


def target(
    settings: DeploySettings, models: tuple[str, ...], photos: tuple[str, ...] = (), secret: str | None = None
) -> Target:
    """Every name, from the settings, the models' URIs, the buckets that photos are read from and the keys' secret.

    Raises:
        SettingsError: no project, an impossible name, or a model that does not lie in a bucket.
    """
    project = check_names(settings)
    for name in photos:
        if not BUCKET.fullmatch(name):
            raise SettingsError(f"images.buckets: {name!r} is not a bucket's name")
    emails = {role: _email(name, project) for role, name in _account_ids(settings.service).items()}
    return Target(
        project=project,
        region=settings.region,
        service=settings.service,
        repository=settings.repository,
        source_bucket=settings.source_bucket or _source_bucket(project),
        build_account=settings.build_account or emails["build"],
        runtime_account=settings.runtime_account or emails["runtime"],
        invoker_account=settings.invoker_account or emails["invoker"],
        model_buckets=tuple(dict.fromkeys(bucket_of(uri) for uri in models)),
        public=settings.public,
        photo_buckets=photos,
        build_region=settings.build_region,
        own_image=settings.image,
        secret=_secret_name(project, secret),
        caller=settings.caller,
        encryption_key=settings.encryption_key,
        subnet=_subnet(settings, project),
    )


def _subnet(settings: DeploySettings, project: str) -> Resource | None:
    """The subnet that is named; without a name the one that is called as its network, as Cloud Run takes it."""
    if settings.network is None:
        return None
    named = settings.subnet or settings.network.rsplit("/", 1)[-1]
    host = next((name.split("/")[1] for name in (named, settings.network) if "/" in name), project)
    short = named.rsplit("/", 1)[-1]
    return Resource(Kind.SUBNET, f"projects/{host}/regions/{settings.region}/subnetworks/{short}", host)


def _secret_name(project: str, secret: str | None) -> str | None:
    if secret is None:
        return None
    if not SECRET.fullmatch(secret):
        raise SettingsError(f"server.api_keys_secret = {secret!r} is not a secret's name: A-Z, a-z, 0-9, _ and -")
    return secret if secret.startswith("projects/") else f"projects/{project}/secrets/{secret}"


def bucket_of(uri: str) -> str:
    """The bucket of a gs:// URI.

    Raises:
        SettingsError: the URI is of another scheme; Cloud Run reaches gs:// with its own account and nothing else.
    """
    parts = urlsplit(uri)
    if parts.scheme != "gs" or not parts.netloc:
        raise SettingsError(
            f"{uri}: only a gs:// model can be deployed; copy it with "
            f"`{shlex.join(['gcloud', 'storage', 'cp', '-r', uri])} gs://...`"
        )
    if not BUCKET.fullmatch(parts.netloc):
        raise SettingsError(f"{uri}: {parts.netloc!r} is not a bucket's name")
    return parts.netloc


def _account_ids(service: str) -> dict[str, str]:
    # Account ids end at 30 characters. One build account serves every service of the project; what reads the model
    # and what may call the service belong to one service each, so that granting one never opens another.
    stem = service if len(service) <= 22 else f"{service[:15].rstrip('-')}-{sha256(service.encode()).hexdigest()[:6]}"
    return {"build": "coldstream-build", "runtime": f"{stem}-runtime", "invoker": f"{stem}-invoker"}
