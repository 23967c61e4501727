"""`python -m krypton` is the command `krypton`."""

import sys

from krypton.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
