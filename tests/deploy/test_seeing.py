"""A model that sees, deployed: the fake's container is a real server, started with what the service carries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.resources import as_file, files
from pathlib import Path

import pytest
import requests

from coldstream import settings as configuration
from coldstream.demo.bucket import LocalBucket
from coldstream.errors import DeployError
from coldstream.settings import Settings
from tests.browser.served import Served
from tests.deploy.conftest import SMALL, Opened, Site

URI = "gs://models/product"
PROMPT = "{photo}Describe this product for the category {category}. Name: {product}"
CONFIG = f'''
[models.product]
uri = "{URI}"

[tasks.product]
prompt = "{PROMPT}"
prompt_input = "product"
[tasks.product.inputs.product]
default = "Sunday mug"
[tasks.product.inputs.category]
kind = "choice"
choices = ["home", "garden", "gift"]
[tasks.product.inputs.photo]
kind = "image"
default = "photos/red-mug.jpg"
[tasks.product.sampling]
max_tokens = 64

[tasks.pair]
prompt = "Which one is larger? {{prompt}}"
images = 2

[images]
max_count = 2
'''


class Containers:
    """Starts a server of its own for every configuration that a revision carries; `urls` are those that are ready."""

    def __init__(self, folder: Path, bucket: LocalBucket, stack: ExitStack) -> None:
        self._folder, self._bucket, self._stack = folder, bucket, stack
        self.urls: dict[str, str] = {}

    def __call__(self, config: str) -> str:
        if config not in self.urls:
            path = self._folder / f"container-{len(self.urls)}" / "coldstream.toml"
            path.parent.mkdir()
            path.write_text(config, encoding="utf-8")
            served = self._stack.enter_context(Served(path, self._bucket.environment))
            self.urls[config] = _ready(served)
        return self.urls[config]


def _ready(served: Served) -> str:
    url = served.url.rstrip("/")
    while requests.get(f"{url}/ready", timeout=10).status_code != 200:
        assert served.process.poll() is None, served.log
        time.sleep(0.05)
    return url


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Servers for this file's tests: who carries the same configuration shares one, as on Cloud Run."""
    with ExitStack() as stack:
        bucket = stack.enter_context(LocalBucket())
        bucket.add("models", "product", stack.enter_context(as_file(files("coldstream.demo") / "product_model")))
        yield Containers(tmp_path_factory.mktemp("containers"), bucket, stack)


@pytest.fixture
def containers(ready: Site, started: Containers) -> Containers:
    """The fake's containers are real and have no card; the product model lies in a real bucket."""
    ready.world.container.server = started
    ready.shelf.models[URI] = Opened(**SMALL)
    return started


@pytest.fixture
def seeing(tmp_path: Path) -> Settings:
    """A task with a photo that has a file as its default, and one with two pictures that no input names."""
    (tmp_path / "photos").mkdir()
    photo = files("coldstream.demo").joinpath("photos/red-mug.jpg").read_bytes()
    (tmp_path / "photos" / "red-mug.jpg").write_bytes(photo)
    path = tmp_path / "coldstream.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return configuration.load(path, environ={})


def test_a_server_with_the_services_own_configuration_accepts_the_smoke_tests_pictures(
    ready: Site, containers: Containers, seeing: Settings
) -> None:
    """Every task is asked over HTTP, with its pictures; each answers with text."""
    ready.deploy(chosen=seeing, cpu_only=True)
    told = [event.text for event in ready.events if event.step == "smoke test" and event.text.startswith("task ")]
    assert [text.split(": ")[0] for text in told] == ["task product", "task pair"]
    assert all("answers '" in text for text in told)


def test_the_default_photo_travels_and_is_described(ready: Site, containers: Containers, seeing: Settings) -> None:
    ready.deploy(chosen=seeing, cpu_only=True)
    (url,) = containers.urls.values()
    answer = requests.post(f"{url}/generate", json={"type": "product", "inputs": {"category": "home"}}, timeout=60)
    assert "red mug" in answer.json()


def test_a_task_that_the_server_would_refuse_keeps_the_traffic_away(
    ready: Site, containers: Containers, seeing: Settings
) -> None:
    """An image that is none, from [deploy.smoke.product]: the server's own words are in the error."""
    smoke = {"product": {"inputs": {"photo": "data:text/plain,hello"}}}
    with pytest.raises(DeployError, match=r"task product: HTTP 422: .*a data URL must read"):
        ready.deploy(chosen=seeing, cpu_only=True, smoke=smoke)
