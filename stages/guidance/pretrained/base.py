"""What stages with pretrained models share: where the weights are, on which device they run, in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

from pydantic import Field, field_validator, model_validator

from rwkvfusion.infra.weights import Checkpoint, HubModel, Weights, WeightsError, absolute_model
from rwkvfusion.stages.guidance.stage import Stage, StageConfig


class ModelConfig(StageConfig):
    """Settings of a stage that runs a model from the hub or from a local folder."""

    model: str = Field(description="hub id, or a local folder that holds the model")
    revision: str | None = Field(default=None, description="commit of the hub's repository; none for a local folder")
    sha256: str | None = Field(default=None, description="of the weights file; null: not checked, only recorded")
    half: bool = Field(default=True, description="half precision on GPUs (bfloat16 where they have it)")

    @model_validator(mode="before")
    @classmethod
    def _one_set(cls, values: Any) -> Any:
        """The defaults of model, revision and sha256 belong together: with another model or revision the rest go."""
        if not isinstance(values, dict):
            return values

        def is_other(name: str) -> bool:
            return name in values and values[name] != cls.model_fields[name].default

        if is_other("model"):
            return {"revision": None, "sha256": None, **values}
        return {"sha256": None, **values} if is_other("revision") else values

    @field_validator("model")
    @classmethod
    def _absolute(cls, model: str) -> str:
        # Workers run in other directories than the one a relative path was meant for.
        return absolute_model(model)


M = TypeVar("M", bound=StageConfig)


class ModelStage(Stage[M]):
    """A stage whose output a pretrained model makes.

    `check` finds the weights on the machine that puts the job together, so that their hash is part of `identity`;
    `load` opens them in the actor, fetching the same ones on a machine that lacks them.
    """

    uses_gpu = True
    weights: Weights | None = None
    _WHERE: ClassVar[frozenset[str]] = frozenset({"model", "revision", "sha256", "checkpoint"})

    model_types: ClassVar[frozenset[str]] = frozenset()
    """Of the hub's models, those whose weights it can take; none: any."""

    def source(self) -> HubModel | Checkpoint:
        """Where the weights come from, by the settings, which are a `ModelConfig`."""
        config: Any = self.config
        return HubModel(config.model, config.revision, config.sha256, self.model_types, option=f"{self.name}.model")

    def check(self) -> None:
        """Find and hash the weights on this machine; WeightsError says what is missing or wrong and what to do."""
        self.weights = self.source().find()

    def identity(self) -> dict[str, Any]:
        """As any stage's; the weights as they were found stand for where they were looked for."""
        if self.weights is None:
            self.check()
        assert self.weights is not None
        identity = super().identity()
        config = {name: value for name, value in identity["config"].items() if name not in self._WHERE}
        return {**identity, "config": config, "weights": self.weights.identity()}

    def local(self) -> Weights:
        """The weights on the machine this runs on: as found when the job was put together, or fetched again.

        WeightsError where they are not the same.
        """
        weights = self.source().fetch()
        if self.weights is not None:
            weights.must_equal(self.weights)
        return weights

    def pretrained(self, kind: Any, weights: Weights, unused: tuple[str, ...] = ()) -> Any:
        """A transformers model of class `kind` with these weights, on the device; WeightsError where any is lacking.

        transformers fills in missing weights at random and only warns: here that is an error, except for tensors
        whose names begin with one of `unused`, which do not shape what is asked of the model.
        """
        import torch

        try:
            with quiet():
                model, facts = kind.from_pretrained(
                    weights.path,
                    local_files_only=True,
                    use_safetensors=True,
                    # The files' own type may be half precision, which CPUs are slow in; `inference` sees to GPUs.
                    dtype=torch.float32,
                    # So that they are listed rather than raised.
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise WeightsError(f"{self.name}: {weights.path}: {str(error).strip().partition(chr(10))[0]}") from error
        failed = {*facts["missing_keys"], *(name for name, *_ in facts["mismatched_keys"])}
        lacking = sorted(name for name in failed if not name.startswith(unused))
        if lacking:
            some = "1 tensor is" if len(lacking) == 1 else f"{len(lacking)} tensors are"
            raise WeightsError(
                f"{self.name}: {weights.path} is not a complete {type(model).__name__}: {some} missing or of another"
                f" shape, e.g. {lacking[0]}"
            )
        return model.to(self.device).eval()

    def pretrained_processor(self, kind: Any, images: Any, weights: Weights) -> Any:
        """A transformers processor of class `kind` that prepares pictures by the class `images`, which is to be of PIL.

        By itself it takes torchvision's operators where there are any, and they give other values.
        """
        with quiet():
            processor = kind.from_pretrained(weights.path, local_files_only=True)
            processor.image_processor = images.from_pretrained(weights.path, local_files_only=True)
        return processor

    @property
    def device(self) -> str:
        """`cuda` where the actor was given a GPU, else `cpu`."""
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients; on a GPU half precision, if the settings allow it."""
        import torch

        half = self.device == "cuda" and getattr(self.config, "half", False)
        dtype = torch.bfloat16 if half and torch.cuda.is_bf16_supported() else torch.float16
        with torch.inference_mode(), torch.autocast(self.device, dtype=dtype, enabled=half):
            yield


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its progress bars and advice, for what is inside."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
