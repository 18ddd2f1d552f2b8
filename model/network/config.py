"""The shape of a network as plain values, and the shapes used for each task."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from rwkvfusion.stages.dataset.task import LUMA_TASKS, TASKS

Align = Literal["mirrored", "aligned", "crossed"]
Decay = Literal["relative", "token"]
Skip = Literal["scalar", "channel"]
Head = Literal["free", "maximum", "weights"]
Size = Literal["tiny", "small", "full", "large"]
Prefer = Literal["brighter", "sharper"]


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that decides the parameters of `RWKVFusion` and what it does with them; JSON holds it as it is.

    The default of a field is what a file without it means; `preset` has the values to train with.
    """

    in_channels: tuple[int, ...]
    """Channels of each modality, in the order in which they are given to the network."""
    out_channels: int
    width: int = 32
    """Channels of the first level before its factor."""
    levels: tuple[int, ...] = (1, 1)
    """BRWKV layers of each encoder level; the decoder mirrors them."""
    channel_factors: tuple[int, ...] = (1, 1)
    """Each level's width is the width before it times its factor."""
    middle: int = 1
    """BRWKV layers below the last level."""
    scan: int = 1
    """Scanning strategy of Sect. 3.4: 1 row or column in turn, 2 both, 3 both and the diagonals."""
    window: int | None = None
    """Side in pixels of the windows to which the token mixing is confined; None is the whole image."""
    text_width: int = 256
    """Width of the text encoder's tokens."""
    text_pool: tuple[int, ...] = (8, 4, 2)
    """Pooling of the image features that meet the text, for each level."""
    max_objects: int = 20
    """Objects of a mask that the network tells apart; at most 255."""
    use_mask: bool = True
    residual: int | None = None
    """Modality whose upsampled form is added to the head (Sect. 3.2); None for none."""
    hidden_ratio: float = 2.0
    """Hidden width of the channel mixing (eq. 10) over its width. Not given in the paper."""
    text_ratio: float = 2.0
    """Hidden width of the MLP behind the text's spatial mixing over its width. Not given in the paper."""
    align: Align = "mirrored"
    """What the scans of a layer have side by side on channels: mirrored, a pixel and its point mirror (the paper's
    letter: each order and its flip, stacked before the linear layers); aligned, the same pixel twice; crossed, a pixel
    once, at half the inner channels, and of a level the decoder in columns where the encoder is in rows."""
    decay: Decay = "relative"
    """relative: lam = w / L (eq. 7), for L tokens; token: lam = e^w a token, whatever the size of the picture."""
    gate_window: int | None = None
    """Side in pixels of the square over which the gate of eq. 15 takes its mean, and at whose number of tokens the
    text has its share; None is the whole picture (the paper)."""
    decoder_images: bool = False
    """Whether the decoder's layers meet the raw modalities too (path i of the MFM, Sect. 3.2)."""
    skip: Skip = "scalar"
    """The learnable factor of the encoder's features: one a level, or one a channel."""
    local: bool = False
    """Whether a depthwise 3x3 convolution follows each upsampling, around a residual."""
    head: Head = "free"
    """What becomes the image: free, the last convolution itself (the paper); maximum, the pixelwise maximum of the
    modalities and a bounded residual; weights, a weighted mean of the modalities and a bounded residual."""
    object_lift: float = 0.0
    """Part of their own height over the ring around them by which the bright pixels of a mask's bright objects rise;
    not in training."""
    prefer: Prefer = "brighter"
    """Of the weights head: the modality that is preferred before anything is learnt; by its value, or by the logarithm
    of its variance in 7x7 pixels."""
    preference: float = 20.0
    """Of the weights head: how much."""
    reach: float = 0.2
    """Of the heads that choose: the largest residual, as a part of an image's range."""
    choice_window: int | None = None
    """Of the weights head: side in pixels, odd, of the square over which the log odds of the choice take their mean,
    so that it has no speckles; None is each pixel for itself. Not in training."""
    epsilon: float | None = None
    """Of every RMSNorm; None is the smallest step of the type."""

    def __post_init__(self) -> None:
        for name in ("in_channels", "levels", "channel_factors", "text_pool"):
            if not isinstance(values := getattr(self, name), list | tuple):
                raise ValueError(f"{name} must be a list of whole numbers, got {values!r}")
            object.__setattr__(self, name, tuple(values))
        positive = {
            "in_channels": self.in_channels,
            "out_channels": (self.out_channels,),
            "width": (self.width,),
            "levels": self.levels,
            "channel_factors": self.channel_factors,
            "middle": (self.middle,),
            "text_width": (self.text_width,),
            "text_pool": self.text_pool,
            "max_objects": (self.max_objects,),
            "window": (1 if self.window is None else self.window,),
            "gate_window": (1 if self.gate_window is None else self.gate_window,),
            "choice_window": (1 if self.choice_window is None else self.choice_window,),
        }
        for name, values in positive.items():
            # In Python, true is a whole number.
            if not values or any(type(n) is not int or n < 1 for n in values):
                raise ValueError(f"{name} must hold whole numbers of at least 1, got {getattr(self, name)!r}")
        if self.max_objects > 255:
            raise ValueError(f"max_objects must be at most 255, the highest index of a mask, got {self.max_objects}")
        if len(self.channel_factors) != len(self.levels):
            raise ValueError(
                f"channel_factors must have one entry per level: {len(self.levels)}, got {self.channel_factors}"
            )
        if len(self.text_pool) < len(self.levels):
            raise ValueError(f"text_pool must have an entry for each level: {len(self.levels)}, got {self.text_pool}")
        if type(self.scan) is not int or self.scan not in (1, 2, 3):
            raise ValueError(f"scan must be 1, 2 or 3, got {self.scan}")
        for name, kind in (("align", Align), ("decay", Decay), ("skip", Skip), ("head", Head), ("prefer", Prefer)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be {' or '.join(get_args(kind))}, got {getattr(self, name)!r}")
        self._check_numbers()
        self._check_head()
        self._check_residual()

    def _check_numbers(self) -> None:
        for name in ("hidden_ratio", "text_ratio", "object_lift", "preference", "reach", "epsilon"):
            number = getattr(self, name)
            if name == "epsilon" and number is None:
                continue
            if type(number) not in (int, float) or not math.isfinite(number):
                raise ValueError(f"{name} must be a finite number, got {number!r}")
            if name not in ("object_lift", "preference") and number <= 0:
                raise ValueError(f"{name} must be above 0, got {number}")
        if not 0 <= self.object_lift <= 1:
            raise ValueError(f"object_lift must be between 0 and 1, got {self.object_lift}")
        if self.choice_window is not None and self.choice_window % 2 == 0:
            raise ValueError(f"choice_window must be odd, got {self.choice_window}")
        for name in ("use_mask", "decoder_images", "local"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")

    def _check_head(self) -> None:
        if self.head == "free":
            return
        if self.residual is not None:
            raise ValueError(f"head {self.head} is of images that are fused, residual of one that is sharpened")
        if len(self.in_channels) < 2 or set(self.in_channels) != {self.out_channels}:
            raise ValueError(
                f"head {self.head} chooses between modalities of {self.out_channels} channels, not {self.in_channels}"
            )

    def _check_residual(self) -> None:
        if self.residual is None:
            return
        if type(self.residual) is not int or not 0 <= self.residual < len(self.in_channels):
            raise ValueError(f"residual must be one of the {len(self.in_channels)} modalities, got {self.residual}")
        if self.in_channels[self.residual] != self.out_channels:
            raise ValueError(
                f"residual modality {self.residual} has {self.in_channels[self.residual]} channels, "
                f"the output {self.out_channels}: they are added and must be equal"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * math.prod(self.channel_factors[: i + 1]) for i in range(len(self.levels)))

    @property
    def multiple(self) -> int:
        """Height and width are padded to a multiple of this many pixels inside the network."""
        pooled = [2**i * pool for i, pool in enumerate(self.text_pool[: len(self.levels)])]
        return math.lcm(*pooled, 2 ** len(self.levels) * (self.window or 1))

    @property
    def head_channels(self) -> int:
        """Channels of the last convolution."""
        if self.head == "weights":
            return (len(self.in_channels) - 1) + self.out_channels
        return self.out_channels


SIZES: dict[Size, dict[str, Any]] = {
    "tiny": {"width": 16, "levels": (1,), "channel_factors": (1,)},
    "small": {"width": 16},
    "full": {},
    "large": {"width": 64, "levels": (2, 2, 2), "channel_factors": (1, 2, 1)},
}
"""What a size changes of the authors' shape for a task. tiny: the largest whose guided forward at 640x480 takes one
thread about a tenth of a second; the C++ calls need widths that 16 divides, so that a narrower one is no faster. small:
to train without a GPU. large: for GPUs."""


def preset(task: str, *, paper: bool = False, size: Size = "full") -> NetworkConfig:
    """The settings to train with for a task; `dataclasses.replace` adapts the channels to other sensors.

    The luma tasks take one channel of each of two modalities. pansharpening is WorldView-3: PAN, then MS with 8
    bands. hmif is Pavia Centre as in Tab. 5: MS with 3 bands, then HS with 102.

    Args:
        task: one of the six.
        paper: the network to the paper's letter, at the authors' widths and depths.
        size: another width and depth than the authors', see `SIZES`.

    Raises:
        ValueError: for an unknown task or size.
    """
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; known are {', '.join(SIZES)}")
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known are {', '.join(TASKS)}")
    pan = task == "pansharpening"
    if task in LUMA_TASKS:
        config = NetworkConfig(in_channels=(1, 1), out_channels=1, levels=(2, 1) if task == "mef" else (1, 1))
    else:
        bands = 8 if pan else 102
        config = NetworkConfig(
            in_channels=(1 if pan else 3, bands),
            out_channels=bands,
            levels=(2, 1, 1),
            channel_factors=(2, 1, 1),
            use_mask=False,
            residual=1,
            text_ratio=2.0 if pan else 8.0,
        )
    form: dict[str, Any] = {"decoder_images": True}
    if not paper:
        form |= _FORM | (_LUMA | _HEADS[task] if task in LUMA_TASKS else _SHARPENING[task])
        if task in LUMA_TASKS and size in ("tiny", "small"):
            form |= _LEAN
    return replace(config, **form, **SIZES[size])


_FORM = {"align": "crossed", "scan": 2, "decay": "token", "skip": "channel", "local": True, "epsilon": 1e-5}
_LUMA = {"gate_window": 96, "head": "weights"}
_HEADS: dict[str, dict[str, Any]] = {
    "vif": {"object_lift": 0.13},
    "mif": {},
    # Where one exposure is nearly white, the contrast of the other has to come from the residual.
    "mef": {"prefer": "sharper", "preference": 0.5, "reach": 0.6},
    "mff": {"prefer": "sharper", "preference": 2.0, "choice_window": 7},
}
# Measured at width 16 to cost a third of the time and to give nothing: a second scan, and the images in the decoder.
_LEAN = {"scan": 1, "decoder_images": False}
# What the crossed scans leave of the paper's size goes to the channel mixing.
_SHARPENING: dict[str, dict[str, Any]] = {
    "pansharpening": {"gate_window": 64, "text_pool": (4, 2, 1), "hidden_ratio": 2.5},
    "hmif": {"gate_window": 64, "text_pool": (4, 2, 2), "hidden_ratio": 1.0},
}
