"""Imported by models that were registered before there was `rwkvfusion.model.registry`."""

from rwkvfusion.model.fusing.fuser import Fuser as Fuser
from rwkvfusion.model.fusing.fuser import FuserError as FuserError
