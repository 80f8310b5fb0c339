"""docker-compose.yml and .env.example: valid, complete, and closed to the outside."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from dotenv import dotenv_values

from registry.celery_app import VISIBILITY_TIMEOUT
from registry.models import MODELS
from tests.compose.compose_file import (
    PATH,
    ROOT,
    SECRETS,
    VariableMissing,
    interpolate,
    raw,
    resolved,
    seconds,
    strings,
)
from v5.__main__ import v5
from worker.supervisor import GRACE

SERVICES = sorted(raw()["services"])
OURS = [name for name in SERVICES if name not in ("redis", "qdrant")]
WORKERS = [name for name in OURS if raw()["services"][name].get("command", [""])[0] == "worker"]
EXAMPLE = ROOT / ".env.example"


def service(name: str) -> dict[str, Any]:
    """A service with variables as a filled-in example gives them."""
    found: dict[str, Any] = resolved(SECRETS)["services"][name]
    return found


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    """Hold a file against the Compose specification's schema, which the package brings along."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_file_follows_the_compose_specification(tmp_path: Path) -> None:
    with_values = tmp_path / "compose.json"
    with_values.write_text(json.dumps(resolved(SECRETS)))
    for path in (PATH, with_values):
        done = validate(path)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("services", "redis", "restrat"), "always"),
        (("services", "aggregator", "depends_on", "qdrant"), {"condition": "service_halthy"}),
        (("services", "flower", "healthcheck", "test"), {"CMD": "true"}),
    ],
)
def test_a_file_that_does_not_follow_it_is_found_out(
    path: tuple[str, ...], value: Any, tmp_path: Path
) -> None:
    document = raw()
    *way, last = path
    part = document
    for step in way:
        part = part[step]
    part[last] = value
    wrong = tmp_path / "compose.json"
    wrong.write_text(json.dumps(document))
    assert validate(wrong).returncode == 1


def test_docker_itself_accepts_it(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    plugin = docker and subprocess.run([docker, "compose", "version"], capture_output=True)
    if not plugin or plugin.returncode != 0:
        pytest.skip("no docker with the compose plugin here")
    env = tmp_path / "env"
    env.write_text("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
    command = [
        docker,
        "compose",
        "--file",
        str(PATH),
        "--env-file",
        str(env),
        "--profile",
        "*",
        "config",
        "-q",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("empty", [True, False], ids=["empty", "absent"])
def test_a_missing_secret_is_refused_with_what_to_do(name: str, empty: bool) -> None:
    given = SECRETS | {name: ""} if empty else {k: v for k, v in SECRETS.items() if k != name}
    with pytest.raises(VariableMissing, match=rf"{name}.*copy \.env\.example to \.env"):
        resolved(given)


def test_the_example_names_every_variable_and_no_other() -> None:
    used: set[str] = set()
    for text in strings(raw()):
        used |= set(re.findall(r"\$\{([A-Z][A-Z0-9_]*)", text.replace("$$", "")))
    shown = set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", EXAMPLE.read_text(), re.M))
    assert shown - {"COMPOSE_PROFILES"} == used
    # As it stands, it gives no secret: nobody runs with one that is printed in a repository.
    assert {name for name, value in dotenv_values(EXAMPLE).items() if not value} == set(SECRETS)


def test_interpolation_is_composes() -> None:
    variables = {"A": "1", "E": ""}
    cases = {
        "$$A ${A} $A": "$A 1 1",
        "${B:-x}${E:-y}${A:-z}": "xy1",
        "${B:-r://${A:?no}@h}": "r://1@h",
        "${A:-${B:?never asked}}": "1",
    }
    assert {text: interpolate(text, variables) for text in cases} == cases
    with pytest.raises(VariableMissing, match="B is missing a value: fill"):
        interpolate("${B:?fill}", variables)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined_and_restarted(name: str) -> None:
    found = service(name)
    uid, gid = (int(number) for number in found["user"].split(":"))
    assert uid > 0
    assert gid > 0
    assert found["read_only"] != name.startswith("gpu-")
    assert found["init"]
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert found["logging"]["options"].keys() == {"max-size", "max-file"}
    assert found["restart"] == ("no" if name == "producer" else "unless-stopped")
    assert not found.get("privileged")
    # The store and the workers keep nothing outside their volumes, and the producer only reads.
    for mount in found.get("volumes", []):
        assert isinstance(mount, str) or mount["read_only"]


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_published_beyond_this_host(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service(name).get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_or_built_here(name: str) -> None:
    found = service(name)
    if name in OURS:
        assert (ROOT / found["build"]["context"] / "Dockerfile").is_file()
        return
    version = re.fullmatch(r"[a-z]+/[a-z]+:v?(\d+)\.(\d+)\.(\d+)(-\w+)?", found["image"])
    assert version, found["image"]
    if name == "qdrant":
        assert (int(version[1]), int(version[2])) >= (1, 18)


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "producer"])
def test_a_service_has_a_health_check_and_waits_for_healthy_ones(name: str) -> None:
    found = service(name)
    check = found["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert seconds(check["timeout"]) < seconds(check["interval"]) or name in ("redis", "qdrant")
    for needed, how in found.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert "healthcheck" in service(needed)


@pytest.mark.parametrize("name", OURS)
def test_a_process_has_time_to_end_well(name: str) -> None:
    grace = seconds(service(name)["stop_grace_period"])
    # As long as in a local fleet at least, and before what it holds would be delivered to another.
    assert GRACE < grace < VISIBILITY_TIMEOUT


@pytest.mark.parametrize("name", [name for name in OURS if name != "producer"])
def test_a_command_is_valid(name: str) -> None:
    first, *rest = service(name)["command"]
    command = v5.get_command(click.Context(v5), first)
    assert command is not None
    command.make_context(first, list(rest))


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_is_one_model_and_its_health_check_asks_for_it(name: str) -> None:
    found = service(name)
    _, model = found["command"]
    assert name.removeprefix("worker-").removeprefix("gpu-") == model.lower()
    assert found["healthcheck"]["test"] == ["CMD", "v5", "health", f"worker-{model}"]


def test_the_profiles_serve_what_they_say() -> None:
    services = resolved(SECRETS)["services"]
    served: dict[str, set[str]] = {"cpu": set(), "full": set()}
    for name in WORKERS:
        (profile,) = services[name]["profiles"]
        served[profile].add(services[name]["command"][1])
        extra = {"cpu": "cpu", "full": "gpu"}[profile]
        assert services[name]["build"]["args"]["EXTRA"] == extra
        assert services[name]["image"] == f"v5-worker:{extra}"
    assert served == {"cpu": {"qdrant-minilm-onnx", "all-miniLM-l6"}, "full": set(MODELS)}


@pytest.mark.parametrize("name", [name for name in WORKERS if name.startswith("gpu-")])
def test_a_gpu_is_pinned_by_a_variable(name: str) -> None:
    (device,) = raw()["services"][name]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    (wanted,) = device["device_ids"]
    variable = wanted.removeprefix("${").partition(":")[0]
    (given,) = resolved(SECRETS | {variable: "7"})["services"][name]["deploy"]["resources"]["reservations"][
        "devices"
    ]
    assert given["device_ids"] == ["7"]
    # Inside its container it is the first.
    assert service(name)["environment"]["V5_DEVICE"] == "cuda:0"


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_stands_in_a_command(name: str) -> None:
    found = service(name)
    said = [
        *strings(found.get("command", [])),
        *strings(found.get("healthcheck", {})),
        *strings(found.get("build", {})),
    ]
    assert not [text for text in said for secret in SECRETS.values() if secret in text]


def test_a_secret_is_given_only_to_whom_it_concerns() -> None:
    services = resolved(SECRETS)["services"]
    holders = {
        name: {service for service in SERVICES if secret in " ".join(strings(services[service]))}
        for name, secret in SECRETS.items()
    }
    assert holders == {
        "REDIS_PASSWORD": set(SERVICES) - {"qdrant"},
        "V5_QDRANT_API_KEY": {"qdrant", "aggregator"},
        "V5_FLOWER_PASSWORD": {"flower"},
    }
