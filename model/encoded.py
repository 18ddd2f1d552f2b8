"""Imported by models that were registered before there was `rwkvfusion.model.registry`."""

from rwkvfusion.model.registry.encoded import COLUMN as COLUMN
from rwkvfusion.model.registry.encoded import fuse_encoded as fuse_encoded
