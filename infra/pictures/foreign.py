"""What is no picture that we read: recognised by its first bytes or its name, and what to convert it with."""

from __future__ import annotations

import re

from rwkvfusion.infra.errors import RwkvFusionError

READ = "png, jpg, bmp, tif, webp"
"""The formats that are read, in words."""
_GDAL = "convert it to TIFF, e.g. `gdal_translate IN OUT.tif`"
_PNG = "convert it to PNG or TIFF, e.g. `magick IN OUT.png`"
_TIFF = "convert it to TIFF of floats, e.g. `magick IN OUT.tif`"
_RAW = "develop it to TIFF, e.g. `dcraw -T -4 IN`"
_ARRAY = "write its array as TIFF, e.g. by `tifffile.imwrite`"
_KINDS = {
    "a JPEG 2000 picture": (_GDAL, "jp2 j2k jpx j2c jpc jpf"),
    "a JPEG XL picture": (_PNG, "jxl"),
    "a JPEG XR picture": (_PNG, "jxr wdp hdp"),
    "a JPEG-LS picture": (_PNG, "jls"),
    "a HEIF picture": (_PNG, "heic heif hif"),
    "an AVIF picture": (_PNG, "avif"),
    "an OpenEXR picture": (_TIFF, "exr"),
    "a Radiance picture": (_TIFF, "hdr pic"),
    "a GIF": (_PNG, "gif"),
    "a PNM picture": (_PNG, "pgm ppm pbm pnm pfm pam"),
    "a Targa picture": (_PNG, "tga"),
    "a Photoshop picture": (_PNG, "psd psb"),
    "an icon": (_PNG, "ico cur icns"),
    "a PCX picture": (_PNG, "pcx"),
    "an SGI picture": (_PNG, "sgi rgb bw"),
    "a DDS texture": (_PNG, "dds"),
    "a vector drawing": (_PNG, "svg eps ps"),
    "a PDF": (_PNG, "pdf"),
    "a camera's raw picture": (_RAW, "dng nef cr2 cr3 arw raf orf rw2 pef srw"),
    "a NumPy array": (_ARRAY, "npy npz"),
    "a MATLAB array": (_ARRAY, "mat"),
    "an HDF5 file": (_ARRAY, "h5 hdf5 hdf he5"),
    "a NetCDF file": (_GDAL, "nc"),
    "a FITS picture": (_ARRAY, "fits fit fts"),
    "a DICOM picture": (_ARRAY, "dcm dicom ima"),
    "a NIfTI volume": (_ARRAY, "nii"),
    "a raster of ENVI or ERDAS": (_GDAL, "img bsq bil bip dat"),
    "a NITF raster": (_GDAL, "ntf nitf"),
    "a virtual raster": (_GDAL, "vrt"),
    "a film": ("take single pictures out of it, e.g. `ffmpeg -i IN %04d.png`", "mp4 avi mov mkv webm mpg mpeg seq"),
}
_BY_EXTENSION = {extension: kind for kind, (_, extensions) in _KINDS.items() for extension in extensions.split()}
_MAGIC = (
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "jp2"),
    (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "jxl"),
    (rb"II\xbc", "jxr"),
    (rb"\xff\xd8\xff\xf7", "jls"),
    (rb".{4}ftypavi[fs]", "avif"),
    (rb".{4}ftyp(hei|hev|mif1|msf1)", "heic"),
    (rb".{4}ftyp", "mp4"),
    (rb"\x76\x2f\x31\x01", "exr"),
    (rb"#\?(RADIANCE|RGBE)", "hdr"),
    (rb"GIF8[79]a", "gif"),
    (rb"P[1-7Ff]\s", "pgm"),
    (rb"8BPS", "psd"),
    (rb"\0\0[\1\2]\0[\x01-\x40]\0", "ico"),
    (rb"DDS ", "dds"),
    (rb"%PDF", "pdf"),
    (rb"\x93NUMPY|PK\x03\x04.{22,26}\w+\.npy", "npy"),
    (rb"MATLAB 5\.0 MAT", "mat"),
    (rb"\x89HDF\r\n", "h5"),
    (rb"CDF[\1\2\5]", "nc"),
    (rb"SIMPLE  =", "fits"),
    (rb".{128}DICM", "dcm"),
    (rb"NITF0", "ntf"),
    (rb"<VRTDataset", "vrt"),
    (rb"RIFF.{4}AVI |\x1aE\xdf\xa3", "avi"),
)
_UNSUPPORTED = re.compile(
    r"not supported|unsupported(?! operand)|not configured|not implemented|missing codec|requires the 'imagecodecs'"
    r"|cannot handle|unknown (compression|.*codec)|decoder \S+ not available",
    re.IGNORECASE,
)
_TOO_LITTLE_MEMORY = re.compile(r"unable to allocate|insufficient memory|out of memory|cannot allocate", re.IGNORECASE)


class ImageError(RwkvFusionError, ValueError):
    """Bytes that are not a picture we can read, or a picture that a format cannot hold; the message says why."""


def foreign(name: str) -> str | None:
    """Why the file `name` is not read though it may be a picture or an array, in words that follow its name.

    None where its extension says neither.
    """
    kind = _BY_EXTENSION.get(name.lower().removesuffix(".gz").rpartition(".")[2])
    return None if kind is None else f"is {kind}, which is not read: {_KINDS[kind][0]}"


def foreign_bytes(data: bytes) -> str | None:
    """The same by what the file holds, in a sentence of its own."""
    for pattern, extension in _MAGIC:
        if re.match(pattern, data[:256], re.DOTALL):
            kind = _BY_EXTENSION[extension]
            return f"{kind}, which is not read: {_KINDS[kind][0]}"
    return None


def is_lack_of_memory(error: Exception) -> bool:
    """Whether a decoder raised `error` because memory ran out."""
    return isinstance(error, MemoryError) or _TOO_LITTLE_MEMORY.search(str(error)) is not None


def is_lack_of_support(message: str) -> bool:
    """Whether a decoder's `message` says that it lacks something, rather than that the file is damaged."""
    return _UNSUPPORTED.search(message) is not None
