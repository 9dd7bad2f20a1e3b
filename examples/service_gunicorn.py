"""The service as an ASGI app of your own, behind gunicorn: each worker process has its models and its queue.

pip install gunicorn uvicorn-worker
cd examples; QDRANT_URL=http://localhost:6333 SOIR_TOKEN=... \
    gunicorn service_gunicorn:app -k uvicorn_worker.UvicornWorker -w 2 -b 0.0.0.0:8000 --graceful-timeout 30

With a read-only home folder, gunicorn 25 and later also need --no-control-socket.

A proxy in front (TLS, timeouts for slow clients) should send a client to the same worker: uploads, jobs and the
queries of heat maps are remembered in the process that has seen them. In a container, one process each is
simpler: `soir serve`, as in docker/compose.yml.
"""

import os
from pathlib import Path

from qdrant_client import QdrantClient

from soir_qdrant import Pipeline, Settings
from soir_qdrant.service.app import create_app
from soir_qdrant.service.settings import ServiceSettings

settings = ServiceSettings(
    host="0.0.0.0",
    token=os.environ["SOIR_TOKEN"],
    roots=(Path(os.environ.get("SOIR_ROOT", "/pictures")),),
    allowed_hosts=(os.environ.get("SOIR_HOST", "localhost"),),
)
client = QdrantClient(url=os.environ["QDRANT_URL"], api_key=os.environ.get("QDRANT_API_KEY"))
# The pipeline is made in the worker process, after the fork.
app = create_app(client, lambda: Pipeline(Settings.for_profile("embedded")), settings)
