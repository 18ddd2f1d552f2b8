"""Imported by models that were registered before there was `rwkvfusion.model.registry`."""

from rwkvfusion.infra.pictures.decode import decode as decode
from rwkvfusion.infra.pictures.decode import decode_indices as decode_indices
