"""Time a backend's engine against the same model written by hand for the same runtime, outside the workbench.

The programs in `scripts/by_hand/` are what a plain user of each runtime would write. Exits with 1 if the
engine takes over 1.5 times what the program takes, by more than the noise.

    python scripts/versus_by_hand.py xla --model llama-50m --prompt 128 --context 256
"""

import importlib
import sys
from functools import partial

from side_by_side import ROOT, Runners, compare, ours, read_arguments

from backends.contract import Shapes
from models.checkpoint import Weights

ALLOWED = 1.5
HAND = "by hand"
BACKENDS = sorted(path.stem for path in (ROOT / "scripts" / "by_hand").glob("*.py"))


def enter(weights: Weights, shapes: Shapes, device: str, backend: str) -> Runners:
    """Make the engine and the program by hand."""
    engine = ours(backend, weights, shapes, device)  # first: it sets what its runtime reads when it starts
    program = importlib.import_module(f"by_hand.{backend}").ByHand(weights.folder, weights.dtype, shapes)
    return {backend: engine, HAND: program}


def main() -> int:
    """Compare at the shapes asked for."""
    parser = read_arguments(__doc__)
    parser.add_argument("backend", choices=BACKENDS)
    asked = parser.parse_args()
    return compare(partial(enter, backend=asked.backend), [(asked.backend, HAND)], ALLOWED, asked)


if __name__ == "__main__":
    sys.exit(main())
