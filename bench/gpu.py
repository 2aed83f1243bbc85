"""What the native engine does on the GPU that is here; `--plan` computes what it could, without one.

python bench/gpu.py [--plan] [--device cpu --tiny]
"""

import sys

from coldstream.bench.gpu.run import main

if __name__ == "__main__":
    sys.exit(main())
