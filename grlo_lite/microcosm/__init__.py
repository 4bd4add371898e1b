"""The miniature world: models and questions small enough for a laptop's CPU."""
