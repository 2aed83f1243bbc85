"""`coldstream bench`: side by side with every peer that is installed; medians, `--json`, a chart."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from coldstream.errors import SettingsError

if TYPE_CHECKING:
    from coldstream.bench.served_quality import Positions
    from coldstream.bench.shape import BucketShape

Uri = Annotated[str, typer.Argument(help="The checkpoint's folder: gs://, s3://, az://, https:// or a path.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines: everything that was measured.")]
Chart = Annotated[Path | None, typer.Option(help="Write a chart (SVG) here.")]
Runs = Annotated[int, typer.Option(min=1, help="Runs of each, in turns; medians are reported.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Side by side with the peers installed here.")
    bench.callback()(_end_in_order)
    for command in (load, serve, coldstart, quality):
        bench.command()(command)
    app.add_typer(bench, name="bench")


def _end_in_order() -> None:
    # The servers under test end with us: a SIGTERM must unwind the stack as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def load(
    uri: Uri,
    runs: Runs = 5,
    bucket: Annotated[
        Literal["http", "https"] | None, typer.Option(help="Put the folder into a local bucket first; https: over TLS.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this contender (repeat for more).")] = None,
    touch_memory: Annotated[
        bool,
        typer.Option(
            "--touch-memory",
            help="Before each load use and free as much memory, so that a virtual machine's host has found the pages;"
            " otherwise each load begins with memory at rest.",
        ),
    ] = False,
    as_json: AsJson = False,
    chart: Chart = None,
) -> None:
    """Bucket to memory: GB/s, CPU seconds a GB and peak memory, beside Run:ai's streamer, gcsfs, curl and others."""
    from coldstream.bench.load import check_contenders, run_load_bench

    chosen = check_contenders(only) if only else None

    def told(item: Any) -> None:
        _say(f"{item.contender}: {item.error or f'{item.seconds:.2f} s'}")

    with _local_bucket(uri, bucket) as (address, environment, title):
        report = run_load_bench(
            address,
            rounds=runs,
            contenders=chosen,
            environment=environment,
            touch_memory=touch_memory,
            title=title,
            report=told,
        )
    _write(chart, report.to_svg())
    if as_json:
        _print_json(report.to_json())
        return
    rows = [
        (
            item.contender,
            item.error or f"{item.gb_per_second:.2f}",
            f"{item.cpu_seconds_per_gb:.2f}",
            f"{item.peak_bytes / 1e9:.2f} ({item.peak_ratio:.2f} x)",
        )
        for item in report.summaries
    ]
    _table(f"{report.uri}, medians of {runs}; {report.machine}", ("", "GB/s", "CPU s/GB", "peak GB"), rows)


@contextlib.contextmanager
def _local_bucket(uri: str, scheme: str | None) -> Iterator[tuple[str, dict[str, str], str]]:
    """The URI to load, what the environment needs for it, and what to call it."""
    if scheme is None:
        yield uri, {}, uri
        return
    from coldstream.bench.load_tls import make_certificate
    from coldstream.demo.bucket import LocalBucket

    folder = Path(uri)
    if not folder.is_dir():
        raise SettingsError(f"--bucket {scheme}: {uri} is not a folder; give the checkpoint's own")
    with tempfile.TemporaryDirectory(prefix="coldstream-tls-") as place:
        made = make_certificate(Path(place)) if scheme == "https" else None
        with LocalBucket(certificate=(made.server, made.key) if made else None) as bucket:
            address = bucket.add("bench", "model", folder)
            where = bucket.secure_url if made else bucket.url
            environment = {"STORAGE_EMULATOR_HOST": where, **(made.environment if made else {})}
            yield address, environment, f"{uri} in a bucket over {scheme}"


def coldstart(
    uri: Uri,
    runs: Runs = 5,
    shape: Annotated[str | None, typer.Option(help="A slower bucket in front: rate=200MB/s,ttfb=60ms.")] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="Drop the kernel's page cache before each start (root).")
    ] = False,
    alone: Annotated[bool, typer.Option("--alone", help="Without peers, beside the floor only.")] = False,
    precision: Annotated[
        list[str] | None, typer.Option(help="int8,bfloat16,...: each is a contender of its own; may be repeated.")
    ] = None,
    unpacked: Annotated[
        bool, typer.Option("--unpacked", help="Also without the model's packed copy, which else is used.")
    ] = False,
    gguf: Annotated[Path | None, typer.Option(help="The same model as GGUF, for llama.cpp.")] = None,
    ollama_model: Annotated[str | None, typer.Option(help="The same model's name in Ollama.")] = None,
    vllm: Annotated[Path | None, typer.Option(help="vLLM's command, where it is not on PATH.")] = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="Instead: how much a second model's load slows the first one's tokens.")
    ] = False,
    as_json: AsJson = False,
    chart: Chart = None,
) -> None:
    """Exec to the first token over HTTP, beside installed peers and the floor (import torch, load the tokenizer)."""
    from coldstream.bench.coldstart import run_coldstart_bench
    from coldstream.bench.shape import BucketShape

    precisions = [name for item in precision or () for name in item.split(",")]
    if beside:
        _beside(uri, precisions, BucketShape.parse(shape) if shape else None, runs=runs, as_json=as_json)
        return
    report = run_coldstart_bench(
        uri,
        runs=runs,
        shape=BucketShape.parse(shape) if shape else None,
        peers=not alone,
        page_cache="cold" if cold else "warm",
        precisions=precisions,
        unpacked=unpacked,
        gguf=gguf,
        ollama_model=ollama_model,
        vllm_command=vllm,
        told=lambda name, start: _say(f"{name}: first token after {start.first_token:.2f} s"),
    )
    _write(chart, report.as_svg())
    data = report.as_json()
    if as_json:
        _print_json(data)
        return
    title = f"{uri}, {report.bytes / 1e6:.0f} MB, {report.page_cache} page cache, medians of {runs}"
    title += f", bucket shaped to {report.shape}" if report.shape else ""
    heads = ("", "first token, s", "of the floor", "after the last byte, s", "first answer, s", "/readyz p99, max, ms")
    _table(title, heads, [_row(item) for item in data["results"]])
    for skipped in report.skipped:
        _say(f"left out: {skipped.name}, {skipped.why}")


def _beside(uri: str, precisions: Sequence[str], shape: BucketShape | None, *, runs: int, as_json: bool) -> None:
    from coldstream.bench.beside import run_beside
    from coldstream.settings import check_precision

    known: list[str | None] = [check_precision(name) for name in precisions]
    found = []
    for precision in known or [None]:
        for _ in range(runs):
            result = run_beside(uri, precision=precision, shape=shape)
            found.append({"precision": precision or "auto"} | result.as_json())
            _say(
                f"{precision or 'auto'}: {result.during:.1f} tokens/s beside a load of {result.seconds:.1f} s, "
                f"{result.alone:.1f} alone: {result.slower:.0%} slower"
            )
    if as_json:
        _print_json({"uri": uri, "runs": found})
        return
    rows = [
        (
            run["precision"],
            f"{run['seconds']:.2f}",
            f"{run['during']:.1f}",
            f"{run['alone']:.1f}",
            f"{run['slower']:.0%}",
        )
        for run in found
    ]
    heads = ("", "load of the second, s", "tokens/s meanwhile", "tokens/s alone", "slower")
    _table(f"{uri} twice in one server: the first one's tokens while the second one loads", heads, rows)


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    """One contender's line of the table."""
    watch, after = result["watch"], result["after_last_byte"]
    return (
        result["name"],
        f"{result['median']:.2f}",
        f"{result['of_floor']:.2f} x",
        f"{after:.2f}" if after is not None else "",
        f"{watch['first_answer']:.2f}" if watch is not None else "",
        f"{watch['p99'] * 1e3:.0f}, {watch['longest'] * 1e3:.0f} ({watch['polls']} polls)" if watch is not None else "",
    )


def serve(
    uri: Annotated[str | None, typer.Argument(help="The checkpoint that our server and the peers serve.")] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=MODEL of a peer to start: llama.cpp=x.gguf, ik_llama.cpp=x.gguf, openvino=DIR, "
            "transformers=DIR, vllm=DIR. NAME:LABEL where one serves several models."
        ),
    ] = None,
    python: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH of the Python that a peer is installed in, where that is not ours."),
    ] = None,
    url: Annotated[
        list[str] | None, typer.Option(help="NAME=URL=MODEL of an OpenAI endpoint that runs already (URL ends in /v1).")
    ] = None,
    clients: Annotated[str, typer.Option(help="Closed loops, one after another.")] = "1,4,8,16",
    rates: Annotated[str, typer.Option(help="Open loops: requests a second, one after another.")] = "",
    beside: Annotated[
        int, typer.Option(min=0, help="Also the first token of short prompts, alone and beside so many other clients.")
    ] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    prompt_words: Annotated[int, typer.Option(min=1, help="Words of each prompt.")] = 48,
    requests: Annotated[int, typer.Option(min=1, help="Requests of each client.")] = 4,
    seconds: Annotated[float, typer.Option(min=1, help="Length of an open loop.")] = 30.0,
    engine: Annotated[str | None, typer.Option(help="Of our own server: auto, native or vllm.")] = None,
    quality: Annotated[
        int,
        typer.Option(min=0, help="Hold each server's next token against float32's at so many places of four texts."),
    ] = 0,
    precision: Annotated[str, typer.Option(help="Of our own server and of vLLM.")] = "auto",
    vllm_args: Annotated[
        str, typer.Option(help="More options of vllm serve, for it and for our server on engine vllm.")
    ] = "",
    as_json: AsJson = False,
    chart: Chart = None,
) -> None:
    """Tokens a second, time to the first token and between tokens, under load, beside peers."""
    from coldstream.bench.serve import Load, run_serve_bench
    from coldstream.bench.serve_load import Endpoint
    from coldstream.settings import check_engine, check_precision

    servers = ({"coldstream": uri} if uri else {}) | dict(_pair(item, "--peer") for item in peer or ())
    running = [(name, *_pair(rest, "--url")) for name, rest in (_pair(item, "--url") for item in url or ())]
    if not servers and not running:
        raise SettingsError("nothing to load: give a URI, or --url NAME=http://host/v1=MODEL")
    report = run_serve_bench(
        servers,
        load=Load(
            clients=tuple(int(item) for item in _numbers(clients, "--clients")),
            rates=_numbers(rates, "--rates"),
            beside=beside,
            requests_per_client=requests,
            max_tokens=max_tokens,
            prompt_words=prompt_words,
            seconds=seconds,
        ),
        endpoints={name: Endpoint(address, model) for name, address, model in running},
        engine=check_engine(engine) if engine is not None else None,
        pythons=dict(_pair(item, "--python") for item in python or ()),
        asked=_positions(uri, quality) if quality else None,
        precision=check_precision(precision),
        vllm_args=tuple(shlex.split(vllm_args)),
        say=_say,
    )
    _write(chart, report.svg())
    if as_json:
        _print_json(report.as_json())
    else:
        typer.echo("\n".join(report.table()))


def _positions(uri: str | None, count: int) -> Positions:
    """What servers are asked for their quality, from the checkpoint that ours serves."""
    from coldstream.bench.served_quality import read_positions

    if uri is None:
        raise SettingsError("--quality needs the checkpoint's URI, to compute in float32 what servers are held against")
    _say(f"computing {count} positions in float32")
    return read_positions(uri, count=count)


def quality(
    uri: Uri,
    precision: Annotated[str, typer.Option(help="int8 or float32; compared with float32.")] = "int8",
    tokens: Annotated[int, typer.Option(min=2, help="At most so many tokens of each text.")] = 256,
    as_json: AsJson = False,
) -> None:
    """KL and perplexity against float32 on English, Korean, code and SQL. Exits 1 when a target is missed."""
    from coldstream.bench.quality import run_quality
    from coldstream.settings import check_precision

    known = check_precision(precision)
    if known not in ("int8", "float32"):
        raise SettingsError(f"--precision {known}: what is compared is what CPUs compute; give int8 or float32")
    report = run_quality(uri, precision=known, tokens=tokens, on_text=_say)
    if as_json:
        summary = {"mean_kl": report.mean_kl, "perplexity_rise": report.perplexity_rise, "is_good": report.is_good}
        _print_json(dataclasses.asdict(report) | summary)
    else:
        rows = [
            (item.text, str(item.tokens), f"{item.mean_kl:.4f}", f"{item.top1_agreement:.3f}", f"{item.perplexity:.2f}")
            for item in report.texts
        ]
        _table(f"{uri} as {known} against float32", ("text", "tokens", "mean KL", "top-1", "perplexity"), rows)
        _say(f"mean KL {report.mean_kl:.4f} nats a token, perplexity {report.perplexity_rise:+.2%}")
    if not report.is_good:
        raise typer.Exit(1)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def _table(title: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.table import Table

    from coldstream.cli.terminal import PrintableConsole

    table = Table(*heads, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    PrintableConsole().print(table)


def _write(chart: Path | None, picture: str) -> None:
    if chart is None:
        return
    try:
        chart.write_text(picture, encoding="utf-8")
    except OSError as exc:
        raise SettingsError(f"--chart {chart}: cannot be written ({exc.strerror}); choose another file") from exc


def _pair(text: str, option: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not equals or not left or not right:
        raise SettingsError(f"{option} {text}: write it as NAME=VALUE; see --help")
    return left, right


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(item) for item in text.split(",") if item.strip())
    except ValueError as exc:
        raise SettingsError(f"{option} {text}: must be numbers with commas between them") from exc
