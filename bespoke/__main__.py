"""Run the command line interface: `python -m bespoke` is the same as `bespoke`."""

import sys

from bespoke.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
