"""Imported by models that were registered before there was `rwkvfusion.model.registry`."""

from rwkvfusion.model.fusing.pixels import encode_picture as encode_picture
