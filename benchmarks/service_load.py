"""Many clients at once at `soir serve`: none may be lost, and what the slowest wait is a ratio to a bare search().

    python benchmarks/service_load.py --clients 50 --requests 3 --out build/service_load.json

The photographs of `soir demo` are ingested (a few of them: the models' time for a query does not depend on how many),
`SoirSearcher.search()` is timed on their queries one after the other, and then the clients search through HTTP as
the page does, each with an upload. A client that is sent away (503) comes back when it is told to.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from qdrant_client import QdrantClient

from soir_qdrant import SoirIngestor, SoirSearcher
from soir_qdrant.lab.demo import photographs

COLLECTION = "load"
HTTP_TIMEOUT = 900.0  # seconds: waiting is what is measured


def fill(folder: Path, images: int) -> None:
    """Ingest the first photographs."""
    client = QdrantClient(path=str(folder))
    SoirIngestor(client, COLLECTION).add(sorted((photographs() / "gallery").iterdir())[:images])
    client.close()


def bare(folder: Path, queries: list[Path]) -> list[float]:
    """Seconds of search(), one query after the other, after one to load the models."""
    client = QdrantClient(path=str(folder))
    searcher, seconds = SoirSearcher(client, COLLECTION), []
    for query in [queries[0], *queries]:
        start = time.perf_counter()
        searcher.search(query.read_bytes(), limit=10)
        seconds.append(time.perf_counter() - start)
    client.close()
    return seconds[1:]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`soir serve` as it is, ready; its address."""
    command = [
        sys.executable,
        "-m",
        "soir_qdrant",
        "serve",
        "--path",
        str(folder),
        "--port",
        "0",
        "--rate",
        "0",
    ]
    with (folder.parent / "log").open("w+") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            while not (address := re.match(r"http://\S+", (folder.parent / "log").read_text())):
                time.sleep(0.5)
            while httpx.get(f"{address[0]}readyz").status_code != 200:
                time.sleep(0.5)
            yield address[0]
        finally:
            process.terminate()


async def visit(http: httpx.AsyncClient, query: Path, requests: int) -> list[tuple[float, int, int]]:
    """One client: seconds until each answer, its status, and how often it was sent away before."""
    answers = []
    for _ in range(requests):
        start, refused = time.perf_counter(), 0
        while True:
            files = {"image": query.read_bytes()}
            answer = await http.post(
                f"v1/collections/{COLLECTION}/search", files=files, data={"request": "{}"}
            )
            if answer.status_code != 503:
                break
            refused += 1
            await asyncio.sleep(float(answer.headers["retry-after"]))
        answers.append((time.perf_counter() - start, answer.status_code, refused))
    return answers


async def load(origin: str, queries: list[Path], clients: int, requests: int) -> list[tuple[float, int, int]]:
    """All clients at once."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=origin, timeout=HTTP_TIMEOUT, limits=limits) as http:
        visits = (visit(http, queries[i % len(queries)], requests) for i in range(clients))
        return [answer for answers in await asyncio.gather(*visits) for answer in answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=3, help="of each client")
    parser.add_argument("--images", type=int, default=4, help="that are ingested")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    queries = sorted((photographs() / "queries").iterdir())
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder) / "db", options.images)
        single = float(np.median(bare(Path(folder) / "db", queries)))
        with serving(Path(folder) / "db") as origin:
            start = time.perf_counter()
            answers = asyncio.run(load(origin, queries, options.clients, options.requests))
            spent = time.perf_counter() - start
    seconds = np.array([one[0] for one in answers])
    result = {
        "clients": options.clients,
        "searches": len(answers),
        "lost": sum(status != 200 for _, status, _ in answers),
        "sent_away_and_back": sum(refused for *_, refused in answers),
        "bare_search_seconds": round(single, 3),
        "p50_ratio": round(float(np.percentile(seconds, 50)) / single, 1),
        "p95_ratio": round(float(np.percentile(seconds, 95)) / single, 1),
        "throughput_ratio": round(len(answers) * single / spent, 2),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
