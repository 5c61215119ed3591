"""``python -m ragtrain``; what ``accelerate launch -m ragtrain ...`` and ``torchrun -m ragtrain ...`` start."""

from __future__ import annotations

import sys

from ragtrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
