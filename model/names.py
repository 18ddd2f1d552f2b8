"""Names that registered models and their readers share, for those that need no network."""

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""The two files of a fuser."""
HASH = "weights_sha256"
"""Tag of a registered version: hex SHA-256 of its weights."""
CANDIDATE, CHAMPION = "candidate", "champion"
"""Aliases: of the version that is to be judged, and of the one in use."""
