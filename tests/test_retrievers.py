"""The retrievers of LangChain and Haystack, in pipelines of the real packages."""

import asyncio

import numpy as np
import pytest
from conftest import ColourPipeline
from qdrant_client import QdrantClient, models
from service_app import BOTTOM, GREEN, RED, TOP, fill, png

from soir_qdrant import SoirSearcher
from soir_qdrant.errors import ConfigError, ImageError

pytestmark = pytest.mark.slow  # importing the packages takes seconds
NO_LANGCHAIN = "langchain-core is not installed: the extra langchain has it"
NO_HAYSTACK = "haystack-ai is not installed: the extra haystack has it"


@pytest.fixture
def searcher(tmp_path):
    client = QdrantClient(":memory:")
    fill(client, tmp_path)
    return SoirSearcher(client, "shelves", pipeline=ColourPipeline())


def found(documents, tmp_path):
    return {document.metadata["uri"].removeprefix(f"{tmp_path}/") for document in documents}


def langchain():
    pytest.importorskip("langchain_core", reason=NO_LANGCHAIN)
    from soir_qdrant.integrations.langchain import SoirRetriever

    return SoirRetriever


def test_langchain_retrieves_by_a_box_in_an_image(searcher, tmp_path):
    retriever = langchain()(searcher=searcher, search_kwargs={"limit": 2})
    documents = retriever.invoke(str(tmp_path / "red-green.png"), box=BOTTOM)
    assert found(documents, tmp_path) == {"red-green.png", "green-blue.png"}
    other = next(d for d in documents if d.page_content.endswith("green-blue.png"))
    assert other.metadata["box"] == list(TOP)
    assert other.metadata["payload"] == {"shop": "south", "price": 20}
    assert len(retriever.invoke(str(tmp_path / "red-green.png"), limit=1)) == 1


def test_langchain_composes_and_awaits_it(searcher, tmp_path):
    chain = langchain()(searcher=searcher) | (lambda documents: documents[0].metadata["payload"]["shop"])
    assert chain.invoke(str(tmp_path / "red-green.png")) == "north"
    assert asyncio.run(chain.ainvoke(str(tmp_path / "red-green.png"))) == "north"


def test_langchain_takes_a_string_for_words_only_where_it_was_said(searcher):
    with pytest.raises(ImageError, match="no such file"):
        langchain()(searcher=searcher).invoke("a red mug")
    with pytest.raises(ConfigError, match="reads no text"):
        langchain()(searcher=searcher, reads="words").invoke("a red mug")


def haystack():
    pytest.importorskip("haystack", reason=NO_HAYSTACK)
    from soir_qdrant.integrations.haystack import SoirRetriever

    return SoirRetriever


def test_haystack_retrieves_in_a_pipeline(searcher, tmp_path):
    from haystack import Pipeline

    pipeline = Pipeline()
    pipeline.add_component("soir", haystack()(searcher, top_k=2))
    answer = pipeline.run({"soir": {"image": str(tmp_path / "red-green.png"), "box": BOTTOM}})
    documents = answer["soir"]["documents"]
    assert {d.meta["uri"].removeprefix(f"{tmp_path}/") for d in documents} == {
        "red-green.png",
        "green-blue.png",
    }
    assert documents[0].score >= documents[1].score
    assert {tuple(d.meta["box"]) for d in documents} == {TOP, BOTTOM}


def test_haystack_takes_bytes_filters_and_another_number(searcher):
    from haystack.dataclasses import ByteStream

    retriever = haystack()(searcher)
    red = ByteStream(png(np.full((20, 20, 3), RED, np.uint8)))
    south = models.Filter(must=[models.FieldCondition(key="shop", match=models.MatchValue(value="south"))])
    assert [
        d.content.endswith("red-blue.png") for d in retriever.run(red, filters=south, top_k=1)["documents"]
    ] == [True]
    with pytest.raises(ConfigError, match="reads no text"):
        retriever.run(text="a red mug")
    with pytest.raises(ConfigError, match="nothing to search for"):
        retriever.run()
    green = ByteStream(png(np.full((20, 20, 3), GREEN, np.uint8)))
    assert len(retriever.run(green, top_k=2)["documents"]) == 2
