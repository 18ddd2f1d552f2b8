"""Caption and masks that the built-in stages make of raw pictures."""

from __future__ import annotations

from collections.abc import Sequence

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.storage import sha256
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.stages.dataset.sample import Image, Sample


class FuseError(RwkvFusionError):
    """Nothing can be fused as asked; the message says what is missing."""


class Guide:
    """Guides `fuser` by the built-in stages."""

    def __init__(self, fuser: Fuser) -> None:
        # Imported here: OpenCV and SciPy are not needed to fuse without guidance.
        from rwkvfusion.stages.guidance.builtin.text import TextConfig
        from rwkvfusion.stages.guidance.chain import GuidanceConfig, guidance_stages
        from rwkvfusion.stages.guidance.stage import fingerprints

        self._task = fuser.config.task
        network = fuser.network.config
        config = GuidanceConfig(text=TextConfig(width=network.text_width), masks="auto" if network.use_mask else "none")
        self._stages = guidance_stages(config, "vif")
        for stage in self._stages:
            stage.load()
        self.fingerprint = sha256(" ".join(fingerprints(self._stages, self._task)).encode())

    def __call__(self, images: Sequence[Image]) -> Sample:
        """A sample of the pictures with what the stages make of them; FuseError where one fails."""
        from rwkvfusion.stages.guidance.stage import run

        sample = Sample(key="pair", dataset="files", split="test", task=self._task, images=tuple(images))
        for stage in self._stages:
            (sample,) = run(stage, [sample])
        if sample.error is not None:
            raise FuseError(f"{sample.error.stage}: {sample.error.message}")
        return sample
