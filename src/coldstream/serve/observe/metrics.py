"""Prometheus metrics of one application; its own registry, so that two applications in a process do not mix.

Times in seconds. What the engine counts itself (blocks, batch, prefix hits) is read at each scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coldstream.engine.request import TokenEvent

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)


class ModelMetrics:
    """What is measured for the requests of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._first = metrics.first_token.labels(model)
        self._gap = metrics.inter_token.labels(model)
        self._queued = metrics.queued.labels(model)
        self._tokens = metrics.tokens
        self._ends = metrics.ends
        self._model = model

    def gap(self, seconds: float, tokens: int) -> None:
        """So many tokens arrived together, so long after the ones before."""
        self._gap.observe(seconds / tokens)

    def end(self, event: TokenEvent) -> None:
        """A sequence's terminal event."""
        self._ends.labels(self._model, event.finish_reason).inc()
        usage = event.usage
        if usage is None:
            return
        self._queued.observe(usage.queued_seconds)
        if usage.first_token_seconds is not None:
            self._first.observe(usage.first_token_seconds)
        self._tokens.labels(self._model, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(self._model, "cached").inc(usage.cached_tokens)
        self._tokens.labels(self._model, "completion").inc(usage.completion_tokens)


class Metrics:
    """The registry and what is observed while requests are answered."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)

        def histogram(name: str, help_: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"coldstream_{name}", help_, labels, registry=self.registry, buckets=buckets)

        def counter(name: str, help_: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"coldstream_{name}", help_, labels, registry=self.registry)

        self.requests = counter("http_requests", "Answered HTTP requests", ("route", "status"))
        self.seconds = histogram("http_request_seconds", "Whole HTTP requests", ("route",), _LATENCY)
        self.first_token = histogram("time_to_first_token_seconds", "From submit to first token", ("model",), _LATENCY)
        self.inter_token = histogram("inter_token_seconds", "Between two tokens of a request", ("model",), _TOKEN)
        self.queued = histogram("queued_seconds", "From submit to the first step", ("model",), _LATENCY)
        self.tokens = counter("tokens", "Tokens; cached ones are among the prompt's", ("model", "kind"))
        self.ends = counter("sequences", "Finished sequences", ("model", "finish_reason"))
        self._models: dict[str, ModelMetrics] = {}

    def of(self, model: str) -> ModelMetrics:
        """The metrics of one model, with their labels resolved once."""
        return self._models.setdefault(model, ModelMetrics(self, model))

    def collect_from(self, read: Callable[[], Iterable[Metric]]) -> None:
        """Call `read` at every scrape."""
        self.registry.register(_Reader(read))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class _Reader(Collector):
    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()


def gauges(prefix: str, help_: str, values: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
    """One gauge a name, labelled by model: `{name: {model: value}}`; a name that ends in _total is a counter."""
    for name, by_model in values.items():
        cls = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        family = cls(f"coldstream_{prefix}{name}", f"{help_}: {name.replace('_', ' ')}", labels=["model"])
        for model, value in by_model.items():
            family.add_metric([model], value)
        yield family


def worker_deaths(deaths: Mapping[str, int]) -> Metric:
    """How many workers were ended by what they worked on, by the kind of work."""
    family = CounterMetricFamily("coldstream_worker_deaths", "Workers ended by their work", labels=["work"])
    for work, count in deaths.items():
        family.add_metric([work], count)
    return family


def numbers(stats: Any) -> dict[str, float]:
    """The numeric fields of a stats dataclass."""
    if not is_dataclass(stats):
        return {}
    pairs = ((item.name, getattr(stats, item.name)) for item in fields(stats))
    return {name: float(value) for name, value in pairs if isinstance(value, int | float)}
