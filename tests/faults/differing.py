"""Not a test: the command `pretrain` with one more setting on one rank.

python -m tests.faults.differing RANK key=value [arguments of pretrain ...]
"""

import os
import sys

from pretrain.cli import main

if __name__ == "__main__":
    rank, override, *arguments = sys.argv[1:]
    main([*arguments, override] if os.environ["RANK"] == rank else arguments)
