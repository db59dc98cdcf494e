"""`python -m app` is `gpumem`."""

import sys

from app.cli import main

sys.exit(main())
