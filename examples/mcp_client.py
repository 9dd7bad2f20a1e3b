"""What an assistant does with `soir mcp`: a search by a box in an image. Needs the extra mcp.

python examples/mcp_client.py QDRANT_FOLDER PICTURES_FOLDER QUERY_IMAGE x0 y0 x1 y1
"""

import asyncio
import base64
import json
import sys
from pathlib import Path

from mcp import Client, StdioServerParameters

needles, photos, image, *corners = sys.argv[1:]
arguments = ["-m", "soir_qdrant", "mcp", "--path", needles, "--root", photos]  # or the command `soir mcp ...`
server = StdioServerParameters(command=sys.executable, args=arguments)


async def main() -> None:
    async with Client(server) as client:
        box = [float(corner) for corner in corners] or None
        answer = await client.call_tool("search_by_image", {"image": image, "box": box, "limit": 3})
    said, *thumbnails = answer.content
    if answer.is_error:
        sys.exit(said.text)
    for hit in json.loads(said.text):
        print(hit["score"], hit["uri"], hit["box"])
    for number, thumbnail in enumerate(thumbnails, 1):
        Path(f"hit-{number}.jpg").write_bytes(base64.b64decode(thumbnail.data))


asyncio.run(main())
