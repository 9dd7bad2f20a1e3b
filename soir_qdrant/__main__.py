"""python -m soir_qdrant: the command `soir`."""

from soir_qdrant.cli import main

main()
