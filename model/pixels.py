"""Imported by models that were registered before there was `rwkvfusion.model.registry`."""

from rwkvfusion.infra.pictures.encode import encode_picture as encode_picture
