import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import picture, stored
from PIL import Image
from qdrant_client import QdrantClient

from soir_qdrant.qdrant.identity import point_id

KILLED = """
import sys
from pathlib import Path
from qdrant_client import QdrantClient
from conftest import ColourPipeline
from soir_qdrant.ingest.ingestor import SoirIngestor

where, pictures = sys.argv[1:]
print("ready", flush=True)
client = QdrantClient(**({"url": where, "check_compatibility": False} if "://" in where else {"path": where}))
report = SoirIngestor(client, pipeline=ColourPipeline(pause=0.03)).add(pictures, batch_size=3)
print(report.added, report.skipped, len(report.failed), flush=True)
client.close()
"""


def start(where: str, pictures: Path) -> subprocess.Popen:
    places = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    arguments = [sys.executable, "-c", KILLED, where, str(pictures)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=env)


def opened(where: str) -> QdrantClient:
    return QdrantClient(url=where, check_compatibility=False) if "://" in where else QdrantClient(path=where)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["path", "http", pytest.param("server", marks=pytest.mark.server)])
def test_killed_at_any_moment_nothing_is_lost(kind, tmp_path, request):
    """SIGKILL, again and again; then one run to the end: every image is in once."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(120):
        Image.fromarray(picture(i, 200, 150)).save(pictures / f"{i:03}.png")
    if kind == "path":
        where = str(tmp_path / "db")
    elif kind == "http":
        where = request.getfixturevalue("stand_in").url
    else:
        where = request.getfixturevalue("empty_server")
    expected = {point_id(hashlib.sha256(path.read_bytes()).hexdigest()) for path in pictures.iterdir()}
    moments = random.Random(0)
    seen: set = set()
    kills = 0
    while kills < 5 or (not seen and kills < 20):
        kills += 1
        process = start(where, pictures)
        assert process.stdout.readline() == "ready\n"
        later = 1.25 ** max(0, kills - 5)  # where a busy machine has stored nothing yet
        time.sleep(moments.uniform(0, 0.4) * later)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        client = opened(where)
        if client.collection_exists("images"):
            now = stored(client)
            assert seen <= set(now) <= expected
            assert all(payload["soir"]["count"] == 1 for payload in now.values())
            seen = set(now)
        client.close()
    last = start(where, pictures)
    out, _ = last.communicate(timeout=120)
    assert out.split() == ["ready", str(120 - len(seen)), str(len(seen)), "0"]
    assert 0 < len(seen) < 120  # else the kills came too early or too late to mean anything
    client = opened(where)
    assert set(stored(client)) == expected
    assert client.count("images", exact=True).count == 120
    client.close()
