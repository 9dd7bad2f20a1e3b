"""A folder is watched, and the collection follows."""

import queue
import threading

import pytest
from conftest import ColourPipeline, ingestor, picture
from PIL import Image
from qdrant_client import QdrantClient

from soir_qdrant.errors import ServerError
from soir_qdrant.ingest.watch import keep_in_step

pytest.importorskip("watchfiles", reason="watchfiles is not installed: the extra watch has it")


def counts_of(reports, expected):
    """The reports until one has these counts; a slow machine may see a change in two passes."""
    total = {}
    while total != expected:
        for what, count in reports.get(timeout=60).counts.items():
            total[what] = total.get(what, 0) + count


@pytest.mark.slow
def test_what_happens_while_it_watches_and_while_nobody_does(folder):
    client, reports, stop = QdrantClient(":memory:"), queue.Queue(), threading.Event()

    def watching():
        options = {"settle": 0.2, "stop": stop, "on_report": reports.put}
        ingestor(client, ColourPipeline()).watch(folder, **options)

    for step in range(2):  # the second after a restart
        thread = threading.Thread(target=watching)
        thread.start()
        counts_of(reports, {"new": 6} if step == 0 else {"vanished": 1})
        Image.fromarray(picture(70 + step)).save(folder / f"new{step}.png")
        counts_of(reports, {"new": 1})
        (folder / f"new{step}.png").rename(folder / f"newer{step}.png")
        counts_of(reports, {"renamed": 1})
        stop.set()
        thread.join()
        stop.clear()
        (folder / f"newer{step}.png").unlink()
    assert client.count("images").count == 7  # nobody has watched since


@pytest.mark.slow
def test_a_lost_server_is_waited_for(folder, caplog):
    stop, calls = threading.Event(), []

    def sync():
        calls.append(1)
        if len(calls) == 1:
            raise ServerError("no server")
        stop.set()

    keep_in_step(sync, folder, settle=0.1, again=0.1, stop=stop)
    assert len(calls) == 2
    assert "no server" in caplog.text
