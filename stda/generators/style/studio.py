"""From pairs of pictures to new pictures: engine, start, masks, colour and margin put together as the knobs say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from stda import BadInput
from stda.compute import Compute
from stda.encoders import Encoder
from stda.generator_sections import NstSection
from stda.generators.style import colour
from stda.generators.style.adain import FeedForward
from stda.generators.style.engine import Engine, Recipe, Target
from stda.generators.style.minimise import minimise, minimise_coarse_to_fine
from stda.generators.style.starts import start_image
from stda.images import to_uint8

Pictures = Callable[[list[str]], Sequence[np.ndarray]]  # image ids -> uint8 (H, W, 3) each; or masks, uint8 (H, W) each


class PairFailed(BadInput):
    """One pair cannot be restyled (a loss that is not finite, an empty mask); others may."""


@dataclass(frozen=True)
class Pair:
    """A content picture, the style pictures it meets, and the seed of a random start."""

    content: str
    styles: tuple[str, ...]
    seed: int

    @staticmethod
    def read(text: str) -> Pair:
        """Read ``content|style|...@seed``."""
        names, seed = text.rsplit("@", 1)
        content, *styles = names.split("|")
        if not content or not styles or not all(styles):
            raise BadInput(f"source_ids '{names}' must name a content and at least one style, as in content|style.")
        return Pair(content, tuple(styles), int(seed))


@dataclass(frozen=True)
class Finished:
    """A new picture, uint8 ``(H, W, 3)``: of which pair (its place in the batch), after how many iterations."""

    place: int
    iteration: int  # 0: the feed-forward network
    picture: np.ndarray
    losses: dict[
        str, float
    ]  # content, style, tv, total; NaN from the feed-forward network, which does not compute them


class Studio:
    """Restyles pictures of the train fold; ``pictures`` and ``masks`` fetch them by id at the working size."""

    def __init__(
        self,
        *,
        encoder: Encoder,
        knobs: NstSection,
        pictures: Pictures,
        masks: Pictures | None,
        compute: Compute,
    ) -> None:
        wants_masks = knobs.regions or "lesion" in (knobs.content_mask, knobs.style_mask)
        if wants_masks and masks is None:
            raise BadInput(
                "content_mask, style_mask and regions need a source with lesion masks: set them to none and false."
            )
        self.knobs, self.compute, self._read, self.masks = knobs, compute, pictures, masks if wants_masks else None
        self.engine = Engine(encoder.to(compute.device), recipe(knobs), compute)
        self.network: FeedForward | None = None
        self.start_picture = _read_picture(knobs.start_file) if knobs.start == "file" else None

    def pictures(self, names: Sequence[str]) -> list[np.ndarray]:
        """Return the source pictures of these ids, uint8 ``(H, W, 3)`` each."""
        found = list(self._read(list(names)))
        for name, picture in zip(names, found, strict=True):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
                raise BadInput(f"The picture {name} is {picture.dtype} {picture.shape}; it must be uint8 (H, W, 3).")
        return found

    def restyle(self, pairs: Sequence[Pair], wanted: Sequence[int]) -> Iterator[list[Finished]]:
        """Yield the pictures of a batch of pairs after each wanted number of iterations, in that order.

        Nothing couples the pairs of a batch; one whose loss is not finite is left out.  Raises PairFailed.
        """
        shots = self._fetch(pairs)
        contents = [shots[pair.content] for pair in pairs]
        if len({picture.shape for picture, _ in contents}) > 1:
            raise BadInput("Pictures of different sizes cannot share a batch: set aspect: square, or batch_size: 1.")
        if self.knobs.engine == "feedforward":
            yield self._feed_forward(pairs, shots)
            return
        for iteration, x, losses, failed in self._optimise(pairs, shots, wanted):
            pixels = to_uint8(x)
            yield [
                Finished(
                    i, iteration, self._finish(pixels[i], *contents[i]), {k: float(v[i]) for k, v in losses.items()}
                )
                for i in range(len(pairs))
                if i not in failed
            ]

    def losses(self, pair: Pair, picture: np.ndarray) -> dict[str, float]:
        """Return the losses ``content``, ``style``, ``tv`` and ``total`` of any picture for a pair (margin 0)."""
        target = self._target(pair, self._fetch([pair]), picture.shape[:2])
        with torch.no_grad():
            found = self.engine.losses(self.engine.tensor(picture), [target])
        parts = {name: float(value[0]) for name, value in found.items()}
        return {**parts, "total": sum(parts.values())}

    def _fetch(self, pairs: Sequence[Pair]) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
        """Return the picture and the lesion mask (if any knob asks for it) of every id of these pairs."""
        names = sorted({name for pair in pairs for name in (pair.content, *pair.styles)})
        found = self.pictures(names)
        masks = self.masks(names) if self.masks else [None] * len(names)
        return {name: (picture, mask) for name, picture, mask in zip(names, found, masks, strict=True)}

    def _target(self, pair: Pair, shots: dict[str, tuple], size: tuple[int, int]) -> Target:
        """Return what a picture of ``size`` is compared with: the content, the styles, the masks."""
        content, content_mask = shots[pair.content]
        masks: dict[str, Any] = {}
        if self.knobs.regions:
            masks["content_regions"] = (content_mask > 0).astype(np.int64)
            masks["style_regions"] = [(shots[name][1] > 0).astype(np.int64) for name in pair.styles]
        if self.knobs.content_mask == "lesion":
            masks["content_mask"] = content_mask
        if self.knobs.style_mask == "lesion":
            masks["style_masks"] = [shots[name][1] for name in pair.styles]
        return self.engine.target((pair.content, content), self._weighted(pair, shots), size=size, **masks)

    def _weighted(self, pair: Pair, shots: dict[str, tuple]) -> list[tuple[str, np.ndarray, float]]:
        """Return name, picture and weight of every style of a pair."""
        weights = self.knobs.style_weights
        if len(weights) != len(pair.styles):
            raise BadInput(f"{len(pair.styles)} styles came with {len(weights)} style_weights: give as many of both.")
        return [(name, shots[name][0], weight) for name, weight in zip(pair.styles, weights, strict=True)]

    def _optimise(
        self, pairs: Sequence[Pair], shots: dict[str, tuple], wanted: Sequence[int]
    ) -> Iterator[tuple[int, torch.Tensor, dict[str, torch.Tensor], dict[int, int]]]:
        """Minimise the losses of a batch and yield iteration, pictures, losses and what failed where wanted."""
        knobs = self.knobs
        content = torch.cat([self.engine.tensor(shots[pair.content][0]) for pair in pairs])
        start = start_image(knobs.start, content, [pair.seed for pair in pairs], picture=self.start_picture)

        def loss_at(size: tuple[int, int]) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
            try:
                targets = [self._target(pair, shots, size) for pair in pairs]
            except BadInput as error:
                raise PairFailed(str(error)) from None
            return lambda x, rows: self.engine.losses(x, [targets[row] for row in rows])

        options: dict[str, Any] = {
            "optimiser": knobs.optimiser,
            "iterations": knobs.iterations,  # schedules do not depend on what is wanted
            "save_at": sorted(set(wanted)),
            "early_stop": knobs.early_stop,
            "learning_rate": knobs.learning_rate,
        }
        if knobs.content_mask == "lesion":
            masks = np.stack([shots[pair.content][1] for pair in pairs])
            options |= {"mask": torch.from_numpy(masks[:, None] > 0).to(content.device), "keep": content}
        if knobs.coarse_to_fine:
            snapshots = minimise_coarse_to_fine(loss_at, start, **options)
        else:
            snapshots = minimise(loss_at(tuple(start.shape[-2:])), start, **options)
        for snapshot in snapshots:
            yield snapshot.iteration, snapshot.x, snapshot.losses, snapshot.failed
            if snapshot.iteration == max(wanted):
                return

    def _feed_forward(self, pairs: Sequence[Pair], shots: dict[str, tuple]) -> list[Finished]:
        """Return the pictures that the trained network makes of a batch."""
        if self.network is None:
            raise BadInput("The feed-forward network has not been trained: call fit with the train fold first.")
        contents = [(pair.content, shots[pair.content][0]) for pair in pairs]
        styles = [[(name, picture) for name, picture, _ in self._weighted(pair, shots)] for pair in pairs]
        x = self.network.transfer(contents, styles, weights=self.knobs.style_weights, alpha=self.knobs.alpha)
        if not x.isfinite().all():
            raise PairFailed(f"the feed-forward network gives no finite picture for {pairs[0].content}")
        unknown = dict.fromkeys(("content", "style", "tv", "total"), float("nan"))
        return [
            Finished(i, 0, self._finish(pixels, *shots[pair.content]), unknown)
            for i, (pair, pixels) in enumerate(zip(pairs, to_uint8(x), strict=True))
        ]

    def _finish(self, picture: np.ndarray, content: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Give back the content's colours and skin where asked, and cut the margin off."""
        if self.knobs.colour == "ycbcr":
            picture = colour.keep_chroma(picture, content)
        elif self.knobs.colour == "histogram":
            picture = colour.match_histogram(picture, content)
        if self.knobs.content_mask == "lesion":
            picture = colour.apply_mask(picture, content, mask)
        return crop(picture, self.knobs.margin)


def recipe(knobs: NstSection) -> Recipe:
    """Return what the engine compares; layers that are not named are the encoder's own."""
    values = {field.name: getattr(knobs, field.name) for field in fields(Recipe)}
    return Recipe(**{**values, "style_layers": tuple(knobs.style_layers)})


def crop(picture: np.ndarray, margin: int) -> np.ndarray:
    """Return the inside of ``(H, W, 3)``, ``margin`` pixels cut off each side."""
    return picture[margin : len(picture) - margin, margin : picture.shape[1] - margin]


def _read_picture(path: str) -> np.ndarray:
    """Read a picture file as uint8 ``(H, W, 3)``."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            return np.asarray(file.convert("RGB"))
    except OSError:
        raise BadInput(f"start_file '{path}' cannot be read as a picture: give a PNG or JPEG file.") from None
