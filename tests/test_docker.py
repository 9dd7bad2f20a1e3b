"""The compose files, read; by Docker's own client where there is one."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: the extra dev has it")
ROOT = Path(__file__).parents[1]
FILES = [ROOT / "docker" / name for name in ("compose.yml", "compose.gpu.yml")]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
BASE, GPU = (yaml.safe_load(file.read_text()) for file in FILES)


@pytest.mark.slow
def test_they_are_what_the_compose_specification_says():
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed: the extra dev has it")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, *map(str, FILES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["qdrant", "triton"])
def test_servers_are_pinned_watched_bounded_and_not_open_to_the_world(name):
    service = BASE["services"][name]
    assert re.fullmatch(r"[\w./-]+:v?\d+(\.\d+)+(-py3)?(@sha256:[0-9a-f]{64})?", service["image"])
    assert service["healthcheck"]["test"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["restart"] == "unless-stopped"


def test_the_client_calls_the_pinned_server_compatible():
    from importlib.metadata import version

    from qdrant_client.common.version_check import is_compatible

    images = [BASE["services"]["qdrant"]["image"]]
    images += re.findall(r"image: (qdrant/qdrant:\S+)", (ROOT / ".github/workflows/ci.yml").read_text())
    (pinned,) = re.findall(r"^qdrant-client==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    for client in (pinned, version("qdrant-client")):
        assert all(is_compatible(client, image.partition(":v")[2].partition("@")[0]) for image in images)


def test_what_stands_behind_the_tags_is_pinned_where_it_is_known():
    qdrant, ci = BASE["services"]["qdrant"]["image"], (ROOT / ".github/workflows/ci.yml").read_text()
    assert re.search(r"@sha256:[0-9a-f]{64}$", qdrant)
    assert f"image: {qdrant}\n" in ci
    assert re.search(r"^FROM python:[\w.-]+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.M)


def test_our_image_is_called_by_the_version_of_the_package():
    from soir_qdrant import __version__

    names = {BASE["services"][name]["image"] for name in ("worker", "service")}
    assert names == {f"soir-qdrant-worker:{__version__}"}
    assert f"-t soir-qdrant-worker:{__version__} ." in DOCKERFILE


@pytest.mark.parametrize("name", BASE["services"])
def test_containers_can_write_to_their_volumes_alone_and_gain_no_rights(name):
    service = BASE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "/tmp" in service["tmpfs"]


def test_the_ports_that_are_documented_are_published():
    ports = {port.rpartition(":")[2] for port in BASE["services"]["qdrant"]["ports"]}
    assert ports == {"6333", "6334"}


def test_secrets_come_from_the_environment():
    held = [
        v
        for s in BASE["services"].values()
        for k, v in s.get("environment", {}).items()
        if "KEY" in k or "TOKEN" in k
    ]
    assert len(held) == 6
    assert all(re.fullmatch(r"\$\{\w+:[?-].*\}", value) for value in held)


def test_the_worker_waits_for_both_servers():
    waits = BASE["services"]["worker"]["depends_on"]
    assert {name: w["condition"] for name, w in waits.items()} == dict.fromkeys(
        ("qdrant", "triton"), "service_healthy"
    )


def test_data_and_engines_outlive_their_containers():
    assert "qdrant:/qdrant/storage" in BASE["services"]["qdrant"]["volumes"]
    (engines,) = GPU["services"]["triton"]["volumes"]
    assert engines == "engines-26.07:/engines"
    assert engines.partition(":")[0] in GPU["volumes"]
    assert "26.07" in BASE["services"]["triton"]["image"]


def test_triton_reads_a_configuration_that_every_model_has():
    from soir_qdrant.serving.repository import ENGINE_CACHE, FILES

    (name,) = (c.partition("=")[2] for c in BASE["services"]["triton"]["command"] if "config-name" in c)
    assert f"configs/{name}.pbtxt" in FILES.values()
    assert not any("config-name" in c for c in GPU["services"]["triton"]["command"])
    assert GPU["services"]["triton"]["volumes"][0].endswith(ENGINE_CACHE)
    (device,) = GPU["services"]["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_the_worker_speaks_the_options_of_the_command():
    from typer.testing import CliRunner

    from soir_qdrant.cli.main import app

    help_text = CliRunner().invoke(app, ["ingest", "--help"], env={"COLUMNS": "200"}).output
    command, *_ = BASE["services"]["worker"]["command"]
    assert command == "ingest"
    for name in ("SOIR_TRITON", "QDRANT_URL", "QDRANT_API_KEY"):
        assert name in BASE["services"]["worker"]["environment"]
        assert name in help_text


def test_the_service_is_started_with_options_that_the_command_has():
    from typer.testing import CliRunner

    from soir_qdrant.cli.main import app

    command, *options = BASE["services"]["service"]["command"]
    help_text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    assert all(option in help_text for option in options if option.startswith("--"))
    assert all(
        name in help_text
        for name in BASE["services"]["service"]["environment"]
        if name != "SOIR_TRITON_TOKEN"
    )


def test_the_image_runs_as_a_user_that_can_be_seen_not_to_be_root():
    (user,) = re.findall(r"^USER (\S+)$", DOCKERFILE, re.M)
    assert int(user) > 0


@pytest.mark.parametrize("name", BASE["services"])
def test_no_more_cores_are_claimed_than_small_machines_have(name):
    """Docker refuses to create a container that may use more cores than there are; 0 is all of them."""
    cpus = BASE["services"][name]["deploy"]["resources"]["limits"]["cpus"]
    assert int(re.fullmatch(r"\$\{[A-Z]+_CPUS:-(\d+)\}", cpus)[1]) <= 2


@pytest.mark.slow
def test_the_first_process_of_a_container_ends_when_it_is_asked_to(tmp_path):
    """The kernel gives the first process of a PID namespace no signal that it does not handle."""
    if not shutil.which("unshare"):
        pytest.skip("no unshare here")
    alone = ["unshare", "--pid", "--fork", *(["--map-root-user"] if os.getuid() else [])]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no PID namespaces here")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and answers nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [*alone, sys.executable, "-m", "soir_qdrant", "ingest", str(tmp_path), "--url", url]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            silent.settimeout(60)
            connection, _ = silent.accept()
            (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(first), signal.SIGTERM)
            try:
                assert process.wait(20) == 128 + signal.SIGTERM
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(first), signal.SIGKILL)
            connection.close()
            assert "Traceback" not in process.stderr.read()


def test_the_service_is_watched_bounded_and_can_write_nothing():
    service = BASE["services"]["service"]
    assert service["healthcheck"]["test"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert "SOIR_TOKEN" in service["environment"]


def test_the_service_reads_of_the_models_what_triton_does_not_serve():
    service, triton = BASE["services"]["service"], BASE["services"]["triton"]
    (models,) = triton["volumes"]
    assert models in service["volumes"]
    assert models.endswith(f":{service['environment']['SOIR_MODELS']}:ro")


def test_the_image_copies_what_the_context_lets_through():
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.M)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored


@pytest.mark.parametrize("files", [FILES[:1], FILES], ids=["cpu", "gpu"])
def test_docker_reads_them(files):
    if not shutil.which("docker"):
        pytest.skip("no docker client here")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("the docker client here has no `compose`")
    env = {**os.environ, "QDRANT_API_KEY": "secret", "MODELS": "/models"}
    options = [part for file in files for part in ("-f", str(file))]
    command = ["docker", "compose", *options, "--profile", "worker", "config", "-q"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def container(tiny_models):
    """NVIDIA's image with the command of the compose file, on the CPU. Several gigabytes, where Docker is."""
    containers = pytest.importorskip(
        "testcontainers.core.container", reason="testcontainers is not installed"
    )
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("Docker does not answer")
    service = BASE["services"]["triton"]
    made = containers.DockerContainer(service["image"]).with_command(" ".join(service["command"]))
    made.with_volume_mapping(str(tiny_models), "/models", "ro").with_exposed_ports(8000, 8001)
    made.with_kwargs(shm_size=service["shm_size"])
    with made as running:
        host = running.get_container_host_ip()
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://{host}:{running.get_exposed_port(8000)}/v2/health/ready")
                break
            except OSError:
                time.sleep(1)
        yield f"{host}:{running.get_exposed_port(8001)}"


@pytest.mark.slow
def test_the_image_serves_the_exports(container, tiny_models, tiny_settings):
    from test_serving import CROPS, MASKS, same

    from soir_qdrant.serving.onnx import OnnxRuntime
    from soir_qdrant.serving.triton import TritonRuntime

    runtime = TritonRuntime(container)
    found = runtime.pipeline(tiny_settings).encoder.encode(CROPS, MASKS)
    same(found.layers, OnnxRuntime(tiny_models, tiny_settings).encoder.encode(CROPS, MASKS).layers)
    runtime.close()
