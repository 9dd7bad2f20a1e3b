"""Where users already are: fastembed and qdrant-client, MCP, LangChain, Haystack, FiftyOne. A file each, which alone
imports the other package."""
