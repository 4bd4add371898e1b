"""The miniature world: a base model, two reward models and questions small enough for a laptop's CPU (see
`world.py`).
"""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
POLICY = ASSETS / "policy"
REWARD = ASSETS / "reward"
HELDOUT = ASSETS / "heldout"  # a judge that nothing is ever trained on
DEMO = ASSETS / "demo"  # a finished run of the shipped recipe, without its checkpoints
