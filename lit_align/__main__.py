"""`python -m lit_align` is `lit-align`."""

import sys

from lit_align.cli import main

if __name__ == "__main__":
    sys.exit(main())
