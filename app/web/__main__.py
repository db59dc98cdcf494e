"""`python -m app.web` is `gpumem web`."""

import sys

from app.cli import main

if __name__ == "__main__":  # the page's worker processes import this module, too
    sys.exit(main(["web", *sys.argv[1:]]))
