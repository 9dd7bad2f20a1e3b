"""Processes, threads and event loops: what is forked, pickled or shared goes on, or says at once why not."""

import asyncio
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
from conftest import QUICK, ColourPipeline, counts, ingestor, picture
from qdrant_client import AsyncQdrantClient, QdrantClient
from stand_in import StandIn

from soir_qdrant import AsyncSoirSearcher, SoirSearcher
from soir_qdrant.errors import ConfigError
from soir_qdrant.ingest import outcome
from soir_qdrant.models.forked import Owner

FORK = multiprocessing.get_context("fork")


def connected(stand_in: StandIn) -> QdrantClient:
    return stand_in.client()


def in_child(action):
    """What `action` returns or raises, as text, in a process that is forked from this one."""

    def run(queue):
        try:
            queue.put(str(action()))
        except Exception as error:
            queue.put(f"{type(error).__name__}: {error}")

    queue = FORK.Queue()
    process = FORK.Process(target=run, args=(queue,))
    process.start()
    try:
        return queue.get(timeout=60)
    finally:
        process.join(5)
        process.kill()


@pytest.mark.slow
def test_a_worker_that_was_forked_after_the_models_computes():
    """In version 0.1 the child hung in its first product."""
    script = """
        import os, sys
        import torch
        import soir_qdrant.pipeline
        torch.set_num_threads(2)
        a = torch.ones(600, 600)
        (a @ a).sum(), torch.nn.functional.conv2d(a[None, None], torch.ones(8, 1, 3, 3))  # the pool of threads is there
        child = os.fork()
        if not child:
            print("child", int((a @ a)[0, 0]), flush=True)
            torch.nn.functional.conv2d(a[None, None], torch.ones(8, 1, 3, 3))
            os._exit(0)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    env = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=env, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "child 600\n"), done.stderr


@pytest.mark.slow
def test_a_fork_after_opencv_computed_in_threads_goes_on():
    """Its threads are let go of before the fork, and taken up in the parent."""
    script = """
        import os, sys
        import cv2
        import numpy as np
        import soir_qdrant.models.forked
        cv2.setNumThreads(2)
        image = np.zeros((3000, 3000, 3), np.uint8)
        cv2.GaussianBlur(image, (31, 31), 5)
        child = os.fork()
        if not child:
            cv2.GaussianBlur(image, (31, 31), 5)
            os._exit(0)
        assert cv2.getNumThreads() == 2
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=env, timeout=60, check=True)


def test_what_cannot_go_on_in_a_child_says_so():
    owner = Owner("the session of onnxruntime")
    owner.check()
    assert in_child(owner.check).startswith("ConfigError: the session of onnxruntime was opened before")


def test_a_searcher_goes_on_in_forked_workers(stand_in):
    """With connections of their own: two processes on one connection read one another's answers."""
    client = connected(stand_in)
    ingestor(client).add([picture(i) for i in range(4)], ids=range(4))
    searcher = SoirSearcher(client, pipeline=ColourPipeline(), retry=QUICK)
    assert searcher.search(picture(2))[0].id == 2

    def search():
        return searcher.search(picture(3))[0].id, searcher.store.client is client

    assert in_child(search) == "(3, False)"
    assert searcher.search(picture(1))[0].id == 1
    assert searcher.store.client is client


def test_local_mode_in_a_folder_cannot_be_forked(tmp_path):
    client = QdrantClient(path=str(tmp_path / "db"))
    ingestor(client).add([picture(0)])
    searcher = SoirSearcher(client, pipeline=ColourPipeline())
    answer = in_child(lambda: searcher.search(picture(0)))
    assert answer.startswith("ConfigError")
    assert "open the client in each process" in answer
    client.close()


def test_an_edge_collection_cannot_be_forked(memory_folder):
    edge = pytest.importorskip("soir_qdrant.qdrant.edge.client", reason="the extra edge is not installed")
    client = edge.EdgeClient(memory_folder)
    ingestor(client).add([picture(0)])
    searcher = SoirSearcher(client, pipeline=ColourPipeline())
    searcher.search(picture(0))
    assert "before this process was forked" in in_child(lambda: searcher.search(picture(0)))
    client.close()


def search_in_pool(searcher: SoirSearcher, seed: int) -> int:
    return searcher.search(picture(seed))[0].id


def test_searchers_travel_to_process_pools(stand_in):
    client = connected(stand_in)
    ingestor(client).add([picture(i) for i in range(4)], ids=range(4))
    searcher = SoirSearcher(client, pipeline=ColourPipeline())
    searcher.search(picture(0))
    with ProcessPoolExecutor(1, mp_context=FORK) as pool:
        assert [pool.submit(search_in_pool, searcher, i).result(60) for i in (1, 3)] == [1, 3]
    again = pickle.loads(pickle.dumps(searcher))
    assert again.search(picture(2))[0].id == 2
    profile = pickle.loads(pickle.dumps(SoirSearcher(client, profile="embedded")))
    assert profile._encoder.profile == "embedded"
    with pytest.raises(ConfigError, match="cannot be pickled: its collection lies in the memory"):
        pickle.dumps(SoirSearcher(QdrantClient(":memory:"), pipeline=ColourPipeline()))


@pytest.mark.slow
def test_one_async_searcher_serves_several_loops(stand_in):
    """In version 0.1: "Event loop is closed"."""
    ingestor(connected(stand_in)).add([picture(i) for i in range(4)], ids=range(4))
    client = AsyncQdrantClient(url=stand_in.url, check_compatibility=False)
    searcher = AsyncSoirSearcher(client, pipeline=ColourPipeline())

    async def twice(seed):
        hits = [await searcher.search(picture(seed)) for _ in range(2)]
        return [page[0].id for page in hits]

    assert asyncio.run(twice(0)) == [0, 0]
    assert asyncio.run(twice(1)) == [1, 1]
    results = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: asyncio.run(twice(i))})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {i: [i, i] for i in range(4)}


@pytest.mark.slow
def test_local_mode_is_searched_while_another_thread_writes():
    """In version 0.1: "operands could not be broadcast"."""
    client = QdrantClient(":memory:")
    ingestor(client).add([picture(0)])
    searcher = SoirSearcher(client, pipeline=ColourPipeline(), retry=QUICK)
    errors = []

    def search():
        try:
            while not written.is_set():
                searcher.search(picture(0), rerank=None)
        except Exception as error:
            errors.append(error)

    written = threading.Event()
    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    report = ingestor(client).add([picture(i) for i in range(1, 80)], batch_size=2)
    written.set()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert counts(report) == (79, 0, 0)


@pytest.mark.parametrize(("every", "count"), [(0.0, 12), (1e9, 1)])
def test_progress_without_a_terminal_is_lines_in_the_log(monkeypatch, caplog, every, count):
    monkeypatch.setattr(outcome, "_EVERY", every)
    with caplog.at_level(logging.INFO, "soir_qdrant.ingest.outcome"):
        ingestor(QdrantClient(":memory:")).add([picture(i) for i in range(12)], batch_size=2)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == count
    assert lines[-1].startswith("12 of 12 images, ")


def test_a_log_goes_on_while_one_batch_takes_long(monkeypatch, caplog):
    monkeypatch.setattr(outcome, "_QUIET", 0.01)

    class Slow(ColourPipeline):
        def scenes(self, *args):
            for _ in range(1000):
                if caplog.records:
                    break
                time.sleep(0.01)
            return super().scenes(*args)

    with caplog.at_level(logging.INFO, "soir_qdrant.ingest.outcome"):
        ingestor(QdrantClient(":memory:"), Slow()).add([picture(i) for i in range(3)], batch_size=3)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "0 of 3 images: the first batch is at work"
    assert lines[-1].startswith("3 of 3 images, ")


def test_progress_by_a_callback():
    calls = []
    add = ingestor(QdrantClient(":memory:")).add
    add([picture(i) for i in range(5)], progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 5) for i in range(1, 6)]
    calls.clear()
    add((picture(i) for i in range(5)), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (5, None)


def test_progress_in_a_notebook_is_a_bar(monkeypatch):
    shown = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(outcome.Progress, "start", lambda self: shown.append(self))
    monkeypatch.setattr(outcome.Progress, "stop", lambda self: None)
    ingestor(QdrantClient(":memory:")).add([picture(0)])
    assert len(shown) == 1


@pytest.mark.parametrize(("own", "again"), [({}, "cache_miss"), ({"CAPACITY": "500"}, "cache_hit")])
@pytest.mark.slow
def test_what_torch_compiles_for_a_size_is_not_remembered_for_ever(own, again):
    """Else photographs of many sizes fill the memory. Who sets oneDNN's variable has decided."""
    code = """
        import soir_qdrant, torch

        layer = torch.nn.Conv2d(16, 16, 3)
        with torch.inference_mode():
            for side in [150, *range(40, 140), 150]:
                layer(torch.zeros(1, 16, side, side))
    """
    environment = {f"ONEDNN_PRIMITIVE_CACHE_{name}": value for name, value in own.items()}
    environment |= {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment | {"ONEDNN_VERBOSE": "profile_create"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    compiled = [line for line in done.stdout.splitlines() if ",convolution," in line]
    assert "_ih150oh148" in compiled[-1]
    assert again in compiled[-1]
