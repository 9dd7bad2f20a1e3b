"""python -m soir_qdrant: the command `soir`."""

from soir_qdrant.cli.main import main

main()
