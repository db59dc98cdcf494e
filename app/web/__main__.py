"""`python -m app.web` is `gpumem web`."""

import sys

from app.cli import main

sys.exit(main(["web", *sys.argv[1:]]))
