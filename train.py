"""Train on a song and separate it.

    python train.py song=take_on_me aug=heavy

See README.md, or `python train.py --help`.
"""

import sys

from bespoke.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
