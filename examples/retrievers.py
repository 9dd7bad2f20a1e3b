"""A collection as a retriever of LangChain and of Haystack. Needs the extras langchain and haystack.

python examples/retrievers.py QDRANT_FOLDER COLLECTION QUERY_IMAGE
"""

import sys

from haystack import Pipeline
from qdrant_client import QdrantClient

from soir_qdrant import SoirSearcher
from soir_qdrant.integrations.haystack import SoirRetriever
from soir_qdrant.integrations.langchain import SoirRetriever as LangChainRetriever

needles, collection, query = sys.argv[1:4]
client = QdrantClient(path=needles)
searcher = SoirSearcher(client, collection)

chain = LangChainRetriever(searcher=searcher, search_kwargs={"limit": 3}) | (
    lambda documents: [(document.page_content, document.metadata["box"]) for document in documents]
)
print(chain.invoke(query))

pipeline = Pipeline()
pipeline.add_component("soir", SoirRetriever(searcher, top_k=3))
for document in pipeline.run({"soir": {"image": query}})["soir"]["documents"]:
    print(f"{document.score:.3f}  {document.content}  {document.meta['box']}")
client.close()
