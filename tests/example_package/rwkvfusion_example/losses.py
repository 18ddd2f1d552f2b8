from torch import Tensor

from rwkvfusion.model.training.losses.loss import Pictures


def smooth(pictures: Pictures) -> Tensor:
    """Mean difference of neighbours that no source has."""

    def differences(picture: Tensor) -> Tensor:
        return picture.diff(dim=-1).abs()

    wanted = differences(pictures.stack).amax(0)
    return (differences(pictures.fused) - wanted).clamp(min=0).mean()
