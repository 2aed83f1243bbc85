"""What coldstream.toml may hold: a frozen dataclass a table, a `key` each line of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from coldstream.settings.key import key
from coldstream.settings.parse import changed
from coldstream.settings.template import template_variables

Precision = Literal["auto", "float32", "bfloat16", "int8"]
LogFormat = Literal["auto", "text", "json"]
Device = Literal["auto", "cpu", "cuda"]
RunEngine = Literal["native", "vllm"]
EngineName = Literal["auto", RunEngine]
Verify = Literal["published", "required"]
WeightsFrom = Literal["index", "file"]
InputKind = Literal["text", "choice", "image"]
AnswerForm = Literal["text", "markdown"]
CardName = Literal["l4", "rtx-pro-6000"]
Ingress = Literal["all", "internal", "internal-and-cloud-load-balancing"]

DEFAULT_PORT = 8080
IMAGE_FORMATS = ("jpeg", "png", "webp", "gif")


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Sampling defaults of a task; None leaves the model's generation_config in force."""

    max_tokens: int | None = key("tokens of an answer, at most", None, at_least=1, example="256")
    temperature: float | None = key("0 takes the best token each time", None, at_least=0, at_most=2, example="0.0")
    top_p: float | None = key(
        "draw from the best tokens that make up this probability", None, above=0, at_most=1, example="0.9"
    )
    top_k: int | None = key("draw from this many of the best tokens; 0: all", None, at_least=0, example="40")
    min_p: float | None = key(
        "leave out tokens below this share of the best one's probability", None, at_least=0, at_most=1, example="0.05"
    )
    repetition_penalty: float | None = key(
        "above 1: what occurred, prompt included, becomes less likely", None, above=0, example="1.1"
    )
    presence_penalty: float | None = key(
        "taken off tokens that the answer holds", None, at_least=-2, at_most=2, example="0.0"
    )
    frequency_penalty: float | None = key(
        "taken off tokens each time that the answer holds them", None, at_least=-2, at_most=2, example="0.0"
    )
    seed: int | None = key("the same seed draws the same answer", None, example="1")
    stop: tuple[str, ...] = key("texts that end the answer and are not part of it", (), example='["\\n\\n"]')


@dataclass(frozen=True, slots=True)
class InputSettings:
    """One variable of a task's template. Without a default it must be given."""

    kind: InputKind = key("text, choice or image", "text")
    default: str | None = key(
        "what stands for an input that is not sent; of an image a file beside this one", None, example='"none"'
    )
    choices: tuple[str, ...] = key('the values that kind "choice" takes', (), example='["home", "garden"]')
    help: str = key("shown on the page and in GET /v1/tasks", "")
    help_in: Mapping[str, str] = key(
        "the same in other languages, by their tags", default_factory=_nothing, example='{ ko = "..." }'
    )


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """A checkpoint to serve."""

    name: str
    uri: str = key("a folder: gs://, s3://, az://, https://, file:// or a path", example='"gs://my-bucket/my-model"')
    device: Device = key("cuda is a GPU or an error; auto takes one where torch can use it, and says why", "auto")
    engine: EngineName = key(
        "what generates: native, or vllm, which needs the extra of that name; auto chooses by device and architecture, "
        "and says why",
        "auto",
    )
    vllm_args: tuple[str, ...] = key(
        "options of `vllm serve` for engine vllm, but for those that are keys here", (), example='["--enforce-eager"]'
    )
    precision: Precision = key("auto, float32, bfloat16 or int8", "auto")
    weights: WeightsFrom = key("what is taken where an index lies beside a whole model.safetensors", "index")
    packed: str = key(
        "where a packed copy lies that starts sooner: auto looks beside the model, off reads the model itself; "
        "who may write there decides what is answered",
        "auto",
        example='"gs://my-bucket/my-model/packed"',
    )
    control_tokens: Literal["text", "keep"] = key(
        'what "<|im_end|>" in a message is: text, so that it begins no turn, or the control token', "text"
    )
    max_context: int | None = key(
        "tokens of prompt and answer; left out: the model's own limit, as memory allows",
        None,
        at_least=1,
        example="8192",
    )


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """What `{"type": NAME}` means: a model, a template, sampling defaults."""

    name: str
    model: str = key("a name from [models]; may be left out where there is one")
    prompt: str = key("the template; {name} is an input, {{ a literal brace", "{prompt}")
    system: str | None = key("a template of the system message", None, example='"Answer in one sentence."')
    prompt_input: str = key("the input that the request's `prompt` fills", "prompt")
    images: int = key("how many unnamed images it takes; they stand before the text", 0, at_least=0)
    help: str = key("shown on the page and in GET /v1/tasks", "")
    help_in: Mapping[str, str] = key(
        "the same in other languages, by their tags", default_factory=_nothing, example='{ ko = "..." }'
    )
    answer: AnswerForm = key("markdown: the page shows answers formatted; text: as they are written", "text")
    examples: Mapping[str, Mapping[str, str]] = key(
        "inputs to try, by the name that the page gives them",
        default_factory=_nothing,
        example='{ Seoul = { city = "Seoul" } }',
    )
    inputs: Mapping[str, InputSettings] = key("a table for each input", default_factory=_nothing)
    sampling: SamplingSettings = key("how tokens are drawn", SamplingSettings())

    @property
    def variables(self) -> tuple[str, ...]:
        """The names in the system text and the prompt template, each once, in order of appearance."""
        names = [*template_variables(self.system or ""), *template_variables(self.prompt)]
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How the HTTP server listens, limits and protects itself.

    API keys come from the environment variable or the file that is named here, never from coldstream.toml itself. A
    deployed server has them from a secret, which `coldstream deploy` mounts as such a variable.
    """

    # Cloud Run reaches the container from outside; IAM guards the door.
    host: str = key("the address to listen on", "0.0.0.0")  # noqa: S104
    port: int = key("$PORT goes before it, as Cloud Run wants it", DEFAULT_PORT, at_least=0, at_most=65535)
    max_queue: int = key("requests that may wait; beyond that, 429 with Retry-After", 64, at_least=1)
    max_queue_tokens: int = key("tokens of the prompts that may wait", 65536, at_least=1)
    max_body_bytes: int = key("bytes of a request's body", 32 * 1024 * 1024, at_least=1)
    request_timeout: float = key("seconds a request may take", 300.0, above=0)
    send_timeout: float = key("seconds that a client may leave its answer unread, then it is hung up on", 30.0, above=0)
    client_share: float = key(
        "how much of the places one API key may have, where there are several keys; without keys, one address",
        0.75,
        above=0,
        at_most=1,
    )
    shared_prefixes: bool = key(
        "all API keys trust one another: what one has asked is quicker for the others, which they can tell",
        False,
    )
    grace: float = key("seconds that running answers get after SIGTERM", 10.0, at_least=0)
    api_keys_env: str | None = key(
        "an environment variable that holds the API keys", None, example='"COLDSTREAM_API_KEYS"'
    )
    api_keys_file: str | None = key("a file that holds the API keys, one a line", None, example='"/secrets/keys"')
    api_keys_secret: str | None = key(
        "a secret of Secret Manager that holds the API keys; for `coldstream deploy`",
        None,
        example='"model-keys"',
    )
    cors_origins: tuple[str, ...] = key("pages of other origins that may call", (), example='["https://example.com"]')
    playground: bool = key("pages at / to try it all out, and at /docs for the API", True)
    log_prompts: bool = key("write prompts into the log", False)
    log_format: LogFormat = key(
        "text: lines for people; json: for Cloud Logging; auto: text on a terminal, json where there is none", "auto"
    )
    access_log: bool = key("a line for every request; false: only for those that failed in the server", True)


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Which images a request may carry, and from where. Nothing is fetched unless it is named here."""

    max_count: int = key("images in one request", 8, at_least=1)
    max_bytes: int = key("bytes of one image file", 20 * 1024 * 1024, at_least=1)
    max_pixels: int = key("width times height, read from the header before anything is decoded", 50_000_000, at_least=1)
    formats: tuple[str, ...] = key("what is taken", IMAGE_FORMATS, known=IMAGE_FORMATS)
    url_hosts: tuple[str, ...] = key(
        'hosts of https URLs; "*.example.com", "host:8443", "*" for every public one',
        (),
        example='["images.example.com"]',
    )
    buckets: tuple[str, ...] = key("buckets of gs:// objects", (), example='["my-bucket"]')
    fetch_seconds: float = key("seconds of a whole fetch, redirects included", 10.0, above=0)
    decoders: int = key("pictures decoded at a time", 2, at_least=1)


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How bytes are fetched. None lets the plan choose."""

    max_bytes_in_flight: int | None = key("bytes asked for and not yet taken", None, at_least=1, example="268435456")
    concurrency: int | None = key("reads at a time", None, at_least=1, example="16")
    deadline: float = key("seconds until a load gives up", 1800.0, above=0)
    verify: Verify = key(
        "published checks every file whose store publishes a checksum, and names the others; required refuses those",
        "published",
    )


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How many sequences run together, and how much memory their keys and values may take."""

    max_sequences: int = key("requests that are computed together", 16, at_least=1)
    step_tokens: int | None = key(
        "tokens of one step, prompts and answers together; left out: 512, and on engine vllm its own choice",
        None,
        at_least=1,
        example="512",
    )
    kv_bytes: int | None = key(
        "bytes of keys and values; left out: a share of the memory that is free", None, at_least=1, example="1073741824"
    )
    prefix_cache: bool = key("what prompts have in common is computed once, images included", True)
    threads: int | None = key("processor threads; left out: those of the container", None, at_least=1, example="4")
    cuda_graphs: bool = key("on a GPU, steps that decode are recorded and played back by the native engine", True)

    @property
    def native_step_tokens(self) -> int:
        """`step_tokens` of the native engine."""
        return self.step_tokens or 512


@dataclass(frozen=True, slots=True)
class SmokeSettings:
    """One question for one task, asked before a new revision gets traffic."""

    prompt: str | None = key("the request's `prompt`", None, example='"How many rows are there?"')
    expect: str | None = key("what the answer must contain", None, example='"SELECT"')
    inputs: Mapping[str, str] = key(
        "the request's `inputs`", default_factory=_nothing, example='{ context = "CREATE TABLE t (a int)" }'
    )


@dataclass(frozen=True, slots=True)
class DeploySettings:
    """Where `coldstream deploy` puts the service, and how large. What is left out the plan chooses.

    Of a service that is there already, `ingress`, `network`, `subnet`, `session_affinity`, `labels`, `encryption_key`
    and `binary_authorization` that are left out stay as they were set there.
    """

    project: str | None = key("the project", None, example='"my-project"')
    region: str = key("where the bucket is", "us-central1")
    service: str = key("the service's name", "coldstream")
    repository: str = key("the repository of images", "coldstream")
    source_bucket: str | None = key("where builds take their source from", None, example='"my-project-source"')
    build_account: str | None = key(
        'who builds; left out: an account of its own, "default": Cloud Build\'s', None, example='"default"'
    )
    runtime_account: str | None = key("who reads the model", None, example='"run@my-project.iam.gserviceaccount.com"')
    invoker_account: str | None = key(
        "who asks the smoke test's questions", None, example='"ask@my-project.iam.gserviceaccount.com"'
    )
    build_region: str | None = key(
        "where it is built; left out: in `region`, and globally where the project may not build there",
        None,
        example='"europe-west1"',
    )
    build_pool: str | None = key(
        "a private pool that builds", None, example='"projects/P/locations/REGION/workerPools/POOL"'
    )
    caller: str | None = key(
        "the IAM member that deploys, where its credentials do not say (workload identity)",
        None,
        example='"principal://iam.googleapis.com/..."',
    )
    image: str | None = key("an image of your own; builds none", None, example='"REGION-docker.pkg.dev/P/R/IMAGE"')
    image_cuda: str | None = key(
        "the CUDA version of that image, which is held against the card's driver", None, example='"12.6"'
    )
    public: bool = key("anybody may call it", False)
    cpu_only: bool = key("no GPU", False)
    card: CardName = key("which GPU", "l4")
    engine: EngineName = key(
        "the image's engine, for models whose own key says auto; auto: on a GPU vllm, until the native engine was "
        "measured there",
        "auto",
    )
    zonal_redundancy: bool = key("another quota, and more dollars", False)
    cpu: int | None = key("vCPU", None, at_least=1, example="4")
    memory_gib: int | None = key("GiB of memory", None, at_least=1, example="16")
    concurrency: int | None = key("requests at a time on an instance", None, at_least=1, example="12")
    min_instances: int = key("instances that are always there", 0, at_least=0)
    max_instances: int | None = key(
        "left out: what the quota holds, at most 3; 1 where nobody may see the quota", None, at_least=1, example="2"
    )
    request_timeout: int = key("seconds a request may take", 600, at_least=1)
    overlap: bool = key("false: the old revision's instances go before the new one starts", True)
    ingress: Ingress | None = key("from where it may be called", None, example='"internal"')
    network: str | None = key("the VPC network that all of its traffic goes through", None, example='"my-network"')
    subnet: str | None = key("the subnet of that network", None, example='"my-subnet"')
    session_affinity: bool | None = key("a client's requests go to one instance", None, example="true")
    liveness: bool | None = key(
        "ask GET /live every 30 s; left out: of an image that is built here", None, example="false"
    )
    encryption_key: str | None = key(
        "your key for the repository, the source bucket and the instances",
        None,
        example='"projects/P/locations/REGION/keyRings/RING/cryptoKeys/KEY"',
    )
    binary_authorization: bool | None = key("the project's policy decides on the image", None, example="true")
    labels: Mapping[str, str] = key("labels of the service", default_factory=_nothing, example='{ team = "search" }')
    smoke: Mapping[str, SmokeSettings] = key("a table for a task's question", default_factory=_nothing)

    def overridden(self, **options: Any) -> DeploySettings:
        """With the command line's options on top, read as the file's are; an option that was not given is None.

        Raises:
            SettingsError: one is unknown, of another type or out of its range.
        """
        return changed(self, {name: value for name, value in options.items() if value is not None}, "deploy")


@dataclass(frozen=True, slots=True)
class Settings:
    """All of coldstream.toml."""

    models: Mapping[str, ModelSettings] = key("one table a model", default_factory=_nothing)
    tasks: Mapping[str, TaskSettings] = key("one table a task", default_factory=_nothing)
    server: ServerSettings = key("the HTTP server", ServerSettings())
    load: LoadSettings = key("the transfer of weights", LoadSettings())
    engine: EngineSettings = key("the engine", EngineSettings())
    images: ImageSettings = key("images in requests", ImageSettings())
    deploy: DeploySettings = key("where `coldstream deploy` puts it", DeploySettings())


def for_uri(uri: str) -> Settings:
    """The settings of `coldstream serve URI` without a file: one model, and the one task `text`."""
    model = ModelSettings(name="default", uri=uri)
    return Settings(models={"default": model}, tasks={"text": TaskSettings(name="text", model="default")})
