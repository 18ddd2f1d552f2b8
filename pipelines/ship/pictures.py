"""The pictures of a pack on a device, and the batches that are cut out of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rwkvfusion.pipelines.ship.packed import Pack
from rwkvfusion.pipelines.ship.recipes import Recipe
from rwkvfusion.pipelines.ship.simulations import SIMULATIONS


class Pictures:
    """A pack on a device, of which a batch is a gather: nothing waits for the host."""

    def __init__(self, pack: Pack, crop: int, device: torch.device, *, n_objects: int) -> None:
        fitting = [one for one in pack.samples if min(one.planes[0].shape) >= crop]
        self.left_out = len(pack.samples) - len(fitting)
        self.n_train = len(fitting) - pack.held_out
        if self.n_train < 1:
            raise SystemExit(f"no sample is as large as a crop of {crop} pixels, and not held out")
        self.samples, self.crop, self.device = fitting, crop, device
        self.n_images, self.n_objects = len(pack.roles), n_objects
        planes = [plane for one in fitting for plane in one.planes]
        starts = np.cumsum([0, *(plane.size for plane in planes)])
        self.planes = torch.from_numpy(np.concatenate([plane.ravel() for plane in planes])).to(device)
        self.starts = starts[:-1].reshape(len(fitting), -1)
        masks = [one.mask for one in fitting]
        sizes = [0 if mask is None else mask.size for mask in masks]
        # A first crop of zeros stands for all that have no mask.
        nothing = np.zeros(max(one.planes[0].size for one in fitting), np.uint8)
        self.masks = torch.from_numpy(np.concatenate([nothing, *(m.ravel() for m in masks if m is not None)])).to(
            device
        )
        self.mask_starts = np.where(sizes, np.cumsum([nothing.size, *sizes])[:-1], 0)
        self.tokens = np.array([0 if one.text is None else len(one.text) for one in fitting])
        texts = np.zeros((len(fitting), max(1, int(self.tokens.max())), pack.text_width), np.float16)
        for row, one in zip(texts, fitting, strict=True):
            if one.text is not None:
                row[: len(one.text)] = one.text
        self.texts = torch.from_numpy(texts).to(device)

    def draw(self, recipe: Recipe, step: int) -> dict[str, np.ndarray]:
        """What decides the batch of `step`: a function of it and the seed alone."""
        n, epochs = recipe.batch, np.divmod(np.arange(step * recipe.batch, (step + 1) * recipe.batch), self.n_train)
        orders = {e: np.random.default_rng([recipe.seed, 1, int(e)]).permutation(self.n_train) for e in set(epochs[0])}
        chosen = np.array([orders[epoch][i] for epoch, i in zip(*epochs, strict=True)])
        rng = np.random.default_rng([recipe.seed, 2, step])
        sizes = np.array([self.samples[i].planes[0].shape for i in chosen])
        top, left = (rng.integers(sizes[:, axis] - self.crop + 1) for axis in (0, 1))
        down, across = rng.random((2, n)) < 0.5
        sides, heights = (
            np.array([getattr(self.samples[i], name) for i in chosen]) for name in ("names_sides", "names_heights")
        )
        no_text = (rng.random(n) < recipe.drop_guidance) | (sides & across) | (heights & down)
        no_mask = rng.random(n) < recipe.drop_guidance
        table = np.zeros((n, 256), np.int64)
        for row in table:
            row[1 : self.n_objects + 1] = 1 + rng.permutation(self.n_objects)
        return {
            "chosen": chosen,
            "starts": self.starts[chosen],
            "mask_starts": np.where(no_mask, 0, self.mask_starts[chosen]),
            "window": np.stack([sizes[:, 1], top, left, down, across], axis=1).astype(np.int64),
            "table": table,
            "tokens": np.where(no_text, 0, self.tokens[chosen]),
            "simulated": rng.random((n, 1, 1, 1)) < recipe.simulate,
            "amount": recipe.amount(rng.random((n, 4))),
            "field": rng.standard_normal((n, 1, 4, 4)).astype(np.float32),
        } | ({"grain": self._grain(recipe, rng)} if recipe.uneven else {})

    def _grain(self, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
        """(B, 2, H, W) by which two sources of a batch differ: noise of up to 2 grey levels, and a level of up to 3."""
        noise = rng.standard_normal((recipe.batch, 2, self.crop, self.crop)) * rng.random((recipe.batch, 1, 1, 1)) * 2
        level = rng.uniform(-3, 3, (recipe.batch, 2, 1, 1))
        return (recipe.uneven * (noise + level) / 255).astype(np.float32)

    def batch(self, drawn: dict[str, Tensor]) -> tuple[list[Tensor], Tensor | None, Tensor, Tensor, Tensor]:
        """Images, target, mask, text and which of its tokens are real: of what `draw` drew."""
        width, top, left, down, across = drawn["window"].unbind(1)
        steps = torch.arange(self.crop, device=self.device)
        rows = top[:, None] + torch.where(down[:, None] > 0, self.crop - 1 - steps, steps)
        columns = left[:, None] + torch.where(across[:, None] > 0, self.crop - 1 - steps, steps)
        places = rows[:, :, None] * width[:, None, None] + columns[:, None, :]
        planes = self.planes[drawn["starts"][:, :, None, None] + places[:, None]].float() / 255
        indices = self.masks[drawn["mask_starts"][:, None, None] + places].long()
        mask = drawn["table"].gather(1, indices.flatten(1)).view_as(indices).to(torch.uint8)
        text = self.texts[drawn["chosen"]].float()
        real = torch.arange(text.shape[1], device=self.device) < drawn["tokens"][:, None]
        return *self._split(planes), mask, text, real

    def held_out(self, recipe: Recipe) -> Iterator[tuple[list[Tensor], Tensor | None]]:
        """The samples that are not trained on: images and target, cut to multiples of 8 pixels."""
        for number, one in enumerate(self.samples[self.n_train :]):
            height, width = (side // 8 * 8 for side in one.planes[0].shape)
            planes = [
                torch.from_numpy(plane[:height, :width].copy()).to(self.device)[None, None].float() / 255
                for plane in one.planes
            ]
            images, target = self._split(torch.cat(planes, dim=1))
            if len(images) < self.n_images:
                rng = np.random.default_rng([recipe.seed, 3, number])
                drawn = recipe.amount(rng.random((1, 4))), rng.standard_normal((1, 1, 4, 4)).astype(np.float32)
                amount, field_ = (torch.from_numpy(one).to(self.device) for one in drawn)
                images, _ = SIMULATIONS[recipe.simulation](images[0], amount, field_, torch.zeros_like(planes[0]))
            yield images, target

    def _split(self, planes: Tensor) -> tuple[list[Tensor], Tensor | None]:
        images = [planes[:, i : i + 1] for i in range(min(self.n_images, planes.shape[1]))]
        return images, planes[:, self.n_images :] if planes.shape[1] > self.n_images else None
