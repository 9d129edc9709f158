"""How much the fuzz tests try. Each run tries other inputs; SEER_PIPE_FUZZ=20 tries twenty times as many."""

import os

EXAMPLES = int(300 * float(os.environ.get("SEER_PIPE_FUZZ", "1")))
