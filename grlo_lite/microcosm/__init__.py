"""The miniature world: a base model, a reward model and questions small enough for a laptop's CPU (see `world.py`)."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
POLICY = ASSETS / "policy"
REWARD = ASSETS / "reward"
