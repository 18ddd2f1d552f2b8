"""The shape of a network as plain values, and the shapes used for each task."""

import math
from dataclasses import dataclass

from rwkvfusion.stages.dataset.task import LUMA_TASKS, SHARPENING_TASKS, TASKS


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that decides the parameters of `RWKVFusion`; JSON holds it as it is."""

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

    def __post_init__(self) -> None:
        for name in ("in_channels", "levels", "channel_factors", "text_pool"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
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
            "window": (self.window or 1,),
        }
        for name, values in positive.items():
            if not values or any(not isinstance(n, int) or n < 1 for n in values):
                raise ValueError(f"{name} must hold whole numbers of at least 1, got {getattr(self, name)!r}")
        if self.max_objects > 255:
            raise ValueError(f"max_objects must be at most 255, the highest index of a mask, got {self.max_objects}")
        if len(self.channel_factors) != len(self.levels):
            raise ValueError(
                f"channel_factors must have one entry per level: {len(self.levels)}, got {self.channel_factors}"
            )
        if len(self.text_pool) < len(self.levels):
            raise ValueError(f"text_pool must have an entry for each level: {len(self.levels)}, got {self.text_pool}")
        if self.scan not in (1, 2, 3):
            raise ValueError(f"scan must be 1, 2 or 3, got {self.scan}")
        if self.hidden_ratio <= 0 or self.text_ratio <= 0:
            raise ValueError("hidden_ratio and text_ratio must be above 0")
        self._check_residual()

    def _check_residual(self) -> None:
        if self.residual is None:
            return
        if not 0 <= self.residual < len(self.in_channels):
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


def preset(task: str) -> NetworkConfig:
    """The authors' settings for a task; `dataclasses.replace` adapts the channels to other sensors.

    The luma tasks take one channel of each of two modalities. pansharpening is WorldView-3: PAN, then MS with 8
    bands. hmif is Pavia Centre as in Tab. 5: MS with 3 bands, then HS with 102.

    Raises:
        ValueError: for an unknown task.
    """
    if task in LUMA_TASKS:
        levels = (2, 1) if task == "mef" else (1, 1)
        return NetworkConfig(in_channels=(1, 1), out_channels=1, levels=levels)
    if task not in SHARPENING_TASKS:
        raise ValueError(f"unknown task {task!r}; known are {', '.join(TASKS)}")
    pan = task == "pansharpening"
    bands = 8 if pan else 102
    return NetworkConfig(
        in_channels=(1 if pan else 3, bands),
        out_channels=bands,
        levels=(2, 1, 1),
        channel_factors=(2, 1, 1),
        use_mask=False,
        residual=1,
        text_ratio=2.0 if pan else 8.0,
    )
