"""API keys."""

from __future__ import annotations

import logging

import pytest

from coldstream.errors import SettingsError, Unauthorized
from coldstream.serve.middleware.auth import ApiKeys, read_keys
from coldstream.settings import ServerSettings
from tests.support.scripted import ScriptedModel


@pytest.mark.parametrize("header", ["Bearer right", "bearer  right ", "Bearer also"])
def test_any_of_the_keys_opens(header) -> None:
    ApiKeys.of("right", "also").check(header)


@pytest.mark.parametrize(
    "header", [None, "", "right", "Basic right", "Bearer", "Bearer Right", "Bearer right2", "Bearer righ"]
)
def test_nothing_else_does(header) -> None:
    with pytest.raises(Unauthorized):
        ApiKeys.of("right", "also").check(header)


def test_keys_come_from_the_environment_and_a_file_without_comments(tmp_path) -> None:
    file = tmp_path / "keys"
    file.write_text("# team a\none\n\n two , three\n")
    keys = read_keys(ServerSettings(api_keys_env="KEYS", api_keys_file=str(file)), {"KEYS": "zero"})
    for key in ("zero", "one", "two", "three"):
        keys.check(f"Bearer {key}")
    with pytest.raises(Unauthorized):
        keys.check("Bearer # team a")


@pytest.mark.parametrize("named", [ServerSettings(api_keys_env="KEYS"), ServerSettings(api_keys_file="/no/such/file")])
def test_keys_that_are_named_but_missing_never_leave_the_door_open(named) -> None:
    with pytest.raises(SettingsError, match=r"server\.api_keys_"):
        read_keys(named, {"KEYS": " , \n# none\n"})


async def test_every_route_but_the_probes_needs_the_key_and_no_log_holds_it(serve, engine, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    served = await serve(ScriptedModel(engine()), keys=ApiKeys.of("s3cret"))
    for method, path in [("POST", "/generate"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/openapi.json")]:
        reply = await served.client.request(method, path, headers={"authorization": "Bearer wr0ng"})
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert "wr0ng" not in reply.text
    assert (await served.client.get("/healthz")).status_code == 200
    for headers in ({"authorization": "Bearer s3cret"}, {"x-api-key": "s3cret"}):
        assert (await served.client.post("/generate", json={"prompt": "x"}, headers=headers)).json() == "hello"
    assert not [record for record in caplog.records if "s3cret" in str(vars(record)) or "wr0ng" in str(vars(record))]
    assert "s3cret" not in repr(served.state)


TWICE = [
    [("authorization", "Bearer s3cret"), ("authorization", "Bearer other")],
    [("authorization", "Bearer other"), ("Authorization", "Bearer s3cret")],
    [("authorization", "Bearer s3cret"), ("authorization", "Bearer s3cret")],
    [("x-api-key", "s3cret"), ("x-api-key", "other")],
]


@pytest.mark.parametrize("headers", TWICE)
async def test_credentials_that_come_twice_are_refused_whichever_a_proxy_believed(serve, engine, headers) -> None:
    served = await serve(ScriptedModel(engine()), keys=ApiKeys.of("s3cret"))
    reply = await served.client.post("/generate", json={"prompt": "x"}, headers=headers)
    assert reply.status_code == 400
    assert "two" in reply.text
    assert (await served.client.get("/v1/models", headers=headers)).status_code == 400


@pytest.mark.parametrize("headers", TWICE)
async def test_credentials_that_come_twice_show_no_names_at_the_probes(serve, engine, headers) -> None:
    served = await serve(ScriptedModel(engine()), keys=ApiKeys.of("s3cret"))
    known = await served.client.get("/readyz", headers={"authorization": "Bearer s3cret"})
    assert "models" in known.json()
    reply = await served.client.get("/readyz", headers=headers)
    assert reply.status_code == 200
    assert "models" not in reply.json()


async def test_a_strangers_body_is_not_read(serve, engine) -> None:
    served = await serve(ScriptedModel(engine()), keys=ApiKeys.of("s3cret"))
    reply = await served.client.post("/generate", content=b"x" * (33 << 20))
    assert reply.status_code == 401
