"""`python -m bespoke` is `bespoke`."""

import sys

from bespoke.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
