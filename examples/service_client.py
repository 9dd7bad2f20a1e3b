"""Talk to `soir serve` from a program: search, keep a thumbnail of the best hit, add images and wait for them.

soir serve --path ./needles --root photos --writable
python examples/service_client.py QUERY_IMAGE [x0,y0,x1,y1] [--add FOLDER_BELOW_ROOT]

Environment: SOIR_URL (http://127.0.0.1:8000), SOIR_TOKEN, SOIR_COLLECTION (images).
"""

import argparse
import json
import os
from pathlib import Path

import httpx

parser = argparse.ArgumentParser()
parser.add_argument("query", type=Path)
parser.add_argument("box", nargs="?")
parser.add_argument("--add")
options = parser.parse_args()

token = os.environ.get("SOIR_TOKEN")
headers = {"Authorization": f"Bearer {token}"} if token else {}
collection = f"/v1/collections/{os.environ.get('SOIR_COLLECTION', 'images')}"


def checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_error:
        raise SystemExit(f"{answer.status_code}: {answer.json()['detail']}")
    return answer


with httpx.Client(
    base_url=os.environ.get("SOIR_URL", "http://127.0.0.1:8000"), headers=headers, timeout=60
) as http:
    if options.add:
        job = checked(http.post(f"{collection}/images", json={"paths": [options.add]})).json()
        with http.stream("GET", f"/v1/jobs/{job['id']}/events") as events:
            for line in events.iter_lines():
                if line.startswith("data: "):
                    job = json.loads(line.removeprefix("data: "))
                    print(f"{job['done']}/{job['total']}, {len(job['failed'])} failed")

    box = [float(side) for side in options.box.split(",")] if options.box else None
    request = {"box": box, "limit": 5}
    with options.query.open("rb") as image:
        answer = http.post(
            f"{collection}/search", files={"image": image}, data={"request": json.dumps(request)}
        )
    hits = checked(answer).json()["hits"]
    for hit in hits:
        print(f"{hit['rank']}  {hit['score']:.3f}  {hit['name']}  {hit['box']}")
    if hits:
        thumbnail = checked(http.get(f"{collection}/images/{hits[0]['id']}/thumbnail", params={"side": 640}))
        Path("best.jpg").write_bytes(thumbnail.content)
