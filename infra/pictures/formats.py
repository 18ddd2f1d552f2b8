"""Names of the formats that pictures are written in; light, for the command line."""

LOSSY = ("jpg", "jpeg")
RASTERS = ("tif", "tiff")
FORMATS = ("png", *RASTERS, "bmp", "webp", *LOSSY)
"""Extensions. All but JPEG's keep every value."""
QUALITY = 95
"""Of JPEG, where none is asked for."""
