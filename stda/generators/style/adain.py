"""Feed-forward style transfer: one pass through a trained decoder instead of an optimisation per picture.

Adaptive instance normalisation (Huang and Belongie 2017, arXiv:1703.06868): the content's features take on the mean and
the standard deviation of the style's, channel by channel, and a decoder turns them back into a picture.  Only the
decoder is trained, on the train fold.  Where this departs from the paper:

- The encoder is any :class:`stda.encoders.Encoder`; features are divided by their RMS over train pictures, so that the
  weight of the style loss means the same for each of them.
- Doubling, then a reflect-padded 3x3 convolution, is one transposed 4x4 convolution: the same numbers, 2.25x cheaper.
- Adam's rate rises for a tenth of the steps and falls along a cosine to zero: hundreds of steps on one kind of picture,
  not 160,000 on all kinds (the paper starts at 1e-4 and divides by 1 + 5e-5 step).
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from stda import BadInput
from stda.compute import Compute
from stda.encoders import Encoder
from stda.generators.adversarial.training import adam, check_finite
from stda.generators.base import Callback
from stda.generators.style.decoder import centre, mirror, settled
from stda.generators.style.trunk import Trunk
from stda.images import to_tensor, to_uint8
from stda.study import sub_seed

Pictures = Callable[[list[str]], Sequence[np.ndarray]]
Named = tuple[str, np.ndarray]  # a picture, uint8 (H, W, 3), and its key in the cache

WEIGHTS_FILE, FACTS_FILE = "decoder.safetensors", "decoder.json"
EPSILON = 1e-5  # added to variances of features of unit RMS, as in the authors' code
N_CALIBRATION = 32  # train pictures that set the scale of the encoder's layers
KEPT_BYTES = 2**28  # of content features and of style statistics, each
GPU_BATCH = 32  # pictures per pass on a GPU; one at a time on a CPU, where batches are no faster


class Moments(NamedTuple):
    """Mean and standard deviation of every channel over positions, each float32 ``(B, C, 1, 1)``."""

    mean: Tensor
    deviation: Tensor


def moments(features: Tensor) -> Moments:
    """Return mean and standard deviation over positions of ``(B, C, h, w)`` (population variance, paper eq. 6)."""
    variance, mean = torch.var_mean(features, dim=(2, 3), correction=0, keepdim=True)
    return Moments(mean, (variance + EPSILON).sqrt())


def normalise(features: Tensor, own: Moments, style: Moments, alpha: float) -> Tensor:
    """Give features the moments of a style (paper eq. 8), mixed with themselves by ``alpha`` in [0, 1] (eq. 14)."""
    ratio = style.deviation / own.deviation
    return torch.addcmul(alpha * (style.mean - ratio * own.mean), features, 1 - alpha + alpha * ratio)


def mean_squared_error(found: Moments, wanted: Moments) -> Tensor:
    """Return the style loss of a layer (paper eq. 13): squared differences of both moments, averaged over channels."""
    return functional.mse_loss(found.mean, wanted.mean) + functional.mse_loss(found.deviation, wanted.deviation)


class Kept(OrderedDict):
    """Values by key within :data:`KEPT_BYTES`; those not used for longest go first.  Values are tuples of tensors."""

    size = 0

    def use(self, key: Any) -> Any:
        """Return the value of a key, or None."""
        if key not in self:
            return None
        self.move_to_end(key)
        return self[key]

    def keep(self, key: Any, value: Iterable[Tensor]) -> None:
        """Add the value of a new key."""
        self[key] = value
        self.size += sum(tensor.nbytes for tensor in value)
        while self.size > KEPT_BYTES:
            _, dropped = self.popitem(last=False)
            self.size -= sum(tensor.nbytes for tensor in dropped)


class FeedForward:
    """Style transfer in one pass: a frozen encoder, adaptive instance normalisation, a decoder that is trained.

    Picture tensors are float32 ``(B, 3, H, W)`` in [-1, 1].  Content features and style statistics are kept per
    picture name.  On a CPU every picture goes alone through the networks: it comes out the same, bit for bit, whatever
    else is asked for.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        layer: str = "",  # whose features are normalised; empty: the encoder's last style layer but one (VGG: conv4_1)
        style_layers: Sequence[str] = (),  # of the style loss; empty: the encoder's up to `layer`, and `layer`
        compute: Compute,
    ) -> None:
        ends, own = encoder.layer_ends, encoder.style_layers
        self.layer = layer or own[-2]
        shallower = [name for name in own if ends[name] < ends.get(self.layer, 0)]
        self.style_layers = tuple(style_layers) or (*shallower, self.layer)
        self.names = tuple(dict.fromkeys([*self.style_layers, self.layer]))
        self.compute, self.provenance = compute, encoder.provenance
        # reflection, as in the authors' code: a frame of zeros has statistics of its own
        self.trunk = Trunk(encoder, self.names, compute, padding="reflect")
        centre(self.trunk.chain)
        self.depth = ends[self.layer] + 1
        self.chunk = GPU_BATCH if compute.device.type == "cuda" else 1
        self.scales: dict[str, float] = {}  # per layer, 1 / RMS over train pictures
        self._new_decoder(seed=0)

    def fit(
        self,
        pictures: Pictures,  # image ids -> uint8 pictures, of any sizes
        ids: Sequence[str],  # of the train fold: each serves as content and as style
        *,
        steps: int,  # optimiser updates
        batch_size: int = 8,  # pairs per update
        learning_rate: float = 1e-3,  # of Adam, at its highest
        style_weight: float = 10.0,  # of the style loss against the content loss, as in the authors' code
        crop: int = 96,  # largest side of the random crops trained on, in pixels (the paper: 256 of 512)
        grid_every: int = 250,  # steps between grids handed to the callback; 0: none
        seed: int,
        callback: Callback | None = None,
    ) -> pd.DataFrame:
        """Train a new decoder and return the history: ``step``, ``loss``, ``content`` and ``style`` (unweighted).

        Content loss: mean squared difference between the features of the result and those it was decoded from (paper
        eq. 12); style loss: :func:`mean_squared_error` summed over the style layers.  Pictures are mirrored at random.
        ``callback`` receives each row with ``steps``, and now and then a ``grid``: a column each of contents, styles
        and results.  Raises BadInput for unusable pictures and TrainingDiverged for a loss that is not finite.
        """
        if len(ids) < 2 or min(steps, batch_size) < 1 or not learning_rate > 0 or style_weight < 0:
            raise BadInput(
                "Training a decoder needs 2 pictures, 1 step, 1 pair a batch, a positive learning_rate and a "
                "style_weight that is not negative."
            )
        random = np.random.default_rng(sub_seed(seed, "batches"))
        self._calibrate(pictures, random.permutation(ids)[:N_CALIBRATION].tolist())
        self._new_decoder(sub_seed(seed, "decoder"))
        optimiser = adam(self.decoder, learning_rate, (0.9, 0.999))
        rise = max(steps // 10, 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min((step + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        )
        history = []
        for step in range(1, steps + 1):
            names = random.choice(list(ids), 2 * batch_size).tolist()
            contents, styles = self._batch(pictures, names, crop, random).chunk(2)
            x, content, style = self._losses(contents, styles)
            loss = content + style_weight * style
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()

            record = {"step": step, "loss": loss.item(), "content": content.item(), "style": style.item()}
            check_finite({**record, "steps": steps}, "Feed-forward style transfer")
            history.append(record)
            if callback:
                due = grid_every and (step % grid_every == 0 or step == steps)
                callback({**record, "steps": steps, **({"grid": _grid(contents, styles, x)} if due else {})})
        self._settle()
        return pd.DataFrame(history)

    @torch.no_grad()
    def transfer(
        self,
        contents: Sequence[Named],  # (name, picture), all of one size
        styles: Sequence[Sequence[Named]],  # for each content one or several, of any size
        *,
        weights: Sequence[float] = (1.0,),  # of the styles of a content; only their proportions count
        alpha: float = 1.0,  # strength: 0 gives the content decoded again, 1 the full statistics of the style
    ) -> Tensor:
        """Return the contents in their styles, float32 ``(B, 3, H, W)`` in [-1, 1].

        Several styles mix their means and deviations, which is the paper's interpolation (eq. 15).  Raises BadInput for
        what cannot be transferred.
        """
        self._check(contents, styles, weights, alpha)
        found = self._look_up(self._contents, contents, lambda features: (features, *moments(features)))
        statistics = iter(self._look_up(self._styles, [named for row in styles for named in row], moments))
        targets = []
        for features, *own in found:
            parts = [weight / sum(weights) * torch.stack(next(statistics)) for weight in weights]
            targets.append(normalise(features, Moments(*own), Moments(*sum(parts)), alpha))
        height, width = contents[0][1].shape[:2]
        results = []
        for start in range(0, len(targets), self.chunk):
            features = torch.cat(targets[start : start + self.chunk]).to(self.trunk.dtype)
            results.append(self._painter(features)[..., :height, :width].float().clamp(-1, 1))
        return torch.cat(results).contiguous()

    def save(self, folder: Path) -> None:
        """Write the decoder into an existing folder: ``decoder.safetensors`` and ``decoder.json``."""
        from safetensors.torch import save_file

        self._require_fitted()
        weights = {key: value.cpu().contiguous() for key, value in self.decoder.state_dict().items()}
        save_file(weights, Path(folder) / WEIGHTS_FILE)
        facts = {"layer": self.layer, "style_layers": self.style_layers, "scales": self.scales}
        text = json.dumps({"encoder": self.provenance, **facts}, indent=1)
        (Path(folder) / FACTS_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, encoder: Encoder, compute: Compute) -> FeedForward:
        """Open what :meth:`save` wrote; an encoder with other weights than at the fit is refused (SHA-256)."""
        from safetensors.torch import load_file

        weights, facts_path = Path(folder) / WEIGHTS_FILE, Path(folder) / FACTS_FILE
        if not (weights.is_file() and facts_path.is_file()):
            raise BadInput(f"No trained decoder in {folder}: run notebook 02_nst with engine 'feedforward' first.")
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
        before, now = facts["encoder"], encoder.provenance
        if before["sha256"] != now["sha256"]:
            raise BadInput(
                f"{folder} was trained with the encoder {before['name']} ({before['sha256'][:8]}), but was given "
                f"{now['name']} ({now['sha256'][:8]}): pass the same one."
            )
        engine = cls(encoder, layer=facts["layer"], style_layers=facts["style_layers"], compute=compute)
        try:
            engine.decoder.load_state_dict(load_file(weights))
        except Exception as error:  # safetensors and torch each have errors of their own for a file that does not fit
            raise BadInput(
                f"{weights} is damaged or of another network ({type(error).__name__}): run notebook 02_nst again."
            ) from None
        engine.scales = facts["scales"]
        engine._settle()
        return engine

    def _new_decoder(self, seed: int) -> None:
        """Make an untrained decoder; what was kept belongs to the old one's scales and is dropped."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            self.decoder, self.stride = mirror(self.trunk.chain[: self.depth])
        self.decoder.to(self.compute.device, memory_format=torch.channels_last)
        self._contents, self._styles = Kept(), Kept()
        self._painter: nn.Module | None = None  # the trained decoder in the form that paints

    def _settle(self) -> None:
        """Make the decoder, now trained, ready to paint."""
        self._painter = settled(self.decoder, self.trunk.dtype)

    def _calibrate(self, pictures: Pictures, ids: list[str]) -> None:
        """Set the factor that brings each layer to an RMS of 1 over these pictures, one picture at a time."""
        self.scales = dict.fromkeys(self.names, 1.0)
        squares = []
        for picture in pictures(ids):
            _check_picture(picture, self.stride)
            with torch.no_grad():
                found = self._features(to_tensor(picture[None]).to(self.compute.device), self.names)
            squares.append([found[name].double().square().mean().item() for name in self.names])
        rms = np.sqrt(np.mean(squares, axis=0))
        dead = [name for name, value in zip(self.names, rms, strict=True) if not value > 0]
        if dead:
            raise BadInput(f"Layers {dead} of {self.provenance['name']} are zero on these pictures: choose others.")
        self.scales = {name: 1 / float(value) for name, value in zip(self.names, rms, strict=True)}

    def _batch(self, pictures: Pictures, names: list[str], crop: int, random: np.random.Generator) -> Tensor:
        """Return the pictures of these image ids, cropped and mirrored at random, as a tensor on the device."""
        found, batch = list(pictures(names)), []
        if len({picture.shape for picture in found}) > 1:  # squares that fit into all of them
            crop = min(crop, *(min(picture.shape[:2]) for picture in found))
        for picture in found:
            top, left = (random.integers(max(side - crop, 0) + 1) for side in picture.shape[:2])
            picture = picture[top : top + crop, left : left + crop]
            _check_picture(picture, self.stride)
            batch.append(picture[:, ::-1] if random.random() < 0.5 else picture)
        return to_tensor(np.stack(batch)).to(self.compute.device)

    def _losses(self, contents: Tensor, styles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the results of a batch of pairs, the content loss and the style loss."""
        with torch.no_grad():
            found = self._features(contents, [self.layer])[self.layer]
            wanted = {name: moments(features) for name, features in self._features(styles, self.names).items()}
            target = normalise(found, moments(found), wanted[self.layer], alpha=1.0)
        with self.compute.autocast():
            x = self.decoder(target.to(self.trunk.dtype))[..., : contents.shape[2], : contents.shape[3]].float()
        features = self._features(x, self.names)
        style = [mean_squared_error(moments(features[name]), wanted[name]) for name in self.style_layers]
        return x, functional.mse_loss(features[self.layer], target), torch.stack(style).sum()

    def _features(self, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Return features of unit RMS, float32, of ``(B, 3, H, W)`` extended to whole strides at right and bottom."""
        height, width = (-side % self.stride for side in x.shape[-2:])
        if height or width:
            x = functional.pad(x, (0, width, 0, height), mode="replicate")
        found = self.trunk(x)
        return {name: found[name].float() * self.scales[name] for name in names}

    def _look_up(
        self, kept: Kept, pictures: Sequence[Named], make: Callable[[Tensor], Iterable[Tensor]]
    ) -> list[tuple[Tensor, ...]]:
        """Return what ``make`` says of the features of each picture; those not kept go through the encoder once."""
        found, missing = {}, {}
        for name, picture in pictures:
            key = (name, picture.shape)
            found[key] = kept.use(key)
            if found[key] is None:
                missing.setdefault(picture.shape, {})[key] = picture
        for group in missing.values():
            keys = list(group)
            for chunk in (keys[i : i + self.chunk] for i in range(0, len(keys), self.chunk)):
                x = to_tensor(np.stack([group[key] for key in chunk])).to(self.compute.device)
                parts = make(self._features(x, [self.layer])[self.layer])
                for row, key in enumerate(chunk):
                    found[key] = tuple(part[row : row + 1].clone() for part in parts)
                    kept.keep(key, found[key])
        return [found[name, picture.shape] for name, picture in pictures]

    def _check(
        self, contents: Sequence[Named], styles: Sequence[Sequence[Named]], weights: Sequence[float], alpha: float
    ) -> None:
        """Refuse pairs that cannot be transferred."""
        self._require_fitted()
        if not contents or len(contents) != len(styles):
            raise BadInput(
                f"{len(contents)} content pictures came with {len(styles)} lists of styles: give one for each."
            )
        if any(len(row) != len(weights) for row in styles):
            raise BadInput(f"{len(weights)} weights came with {len(styles[0])} styles: give as many of both.")
        if not weights or min(weights) < 0 or not sum(weights) > 0:
            raise BadInput(
                f"The style weights are {list(weights)}: give one for each style, none negative, not all zero."
            )
        if not 0 <= alpha <= 1:
            raise BadInput(f"alpha is {alpha}; it must be between 0 (content) and 1 (full style).")
        for _, picture in [*contents, *(named for row in styles for named in row)]:
            _check_picture(picture, self.stride)
        if len({picture.shape for _, picture in contents}) > 1:
            raise BadInput("The content pictures differ in size: transfer those of one size together.")

    def _require_fitted(self) -> None:
        if self._painter is None:
            raise BadInput(
                "The feed-forward decoder is not trained yet: call fit with pictures of the train fold first."
            )


def _check_picture(picture: np.ndarray, stride: int) -> None:
    """Refuse what is no picture, or too small to be extended by reflection at the deepest layer."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < 2 * stride:
        raise BadInput(
            f"A picture is {picture.dtype} {picture.shape}; this encoder needs uint8 (H, W, 3) of at least "
            f"{2 * stride} pixels a side."
        )


def _grid(*columns: Tensor) -> np.ndarray:
    """Return pictures side by side, uint8 ``(h, w, 3)``: a column per batch, at most four rows."""
    return np.concatenate([np.concatenate(list(to_uint8(column[:4]))) for column in columns], axis=1)
