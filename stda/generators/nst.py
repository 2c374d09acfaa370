"""Style transfer as a generator (ST-DA, Mikolajczyk and Grochowski 2018, 2019).

The picture of a lesion of one class (as published: benign; here the largest class) is redrawn in the style of a lesion
of the asked class, both from the train fold; a classifier trained on the train fold then gives its opinion of what it
became, the pseudo-label.  Pictures are made at the size that ``pictures`` gives and resized to the study's size by the
function that resizes the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from stda import BadInput
from stda.compute import Compute, setup
from stda.encoders import Encoder, InDomain
from stda.generators import gatys
from stda.generators.base import Callback, Generator, image_seeds, read_settings, synthetic_table, write_settings
from stda.images import ImageSet, require_train, to_tensor, to_uint8
from stda.study import sub_seed

Pictures = Callable[[list[str]], np.ndarray]
Resize = Callable[[np.ndarray, int], np.ndarray]

LABELS = ("pseudo", "style")
SOURCES_FILE = "sources.csv"
N_CALIBRATION = 32  # train pictures that set the scale of the encoder's layers
CHUNK = 64  # images whose sources are fetched together


class StyleTransfer(Generator):
    """Images of asked classes by style transfer between real training pictures."""

    name: ClassVar[str] = "nst"

    def __init__(
        self,
        *,
        encoder: Encoder,  # whose layers define content and style
        pictures: Pictures,  # image ids -> uint8 (n, S, S, 3), the originals at the size at which style is transferred
        resize: Resize,  # (uint8 images, size) -> uint8 images: how the real images reached the study's size
        labeller: InDomain | None = None,  # gives pseudo-labels; needed for labels="pseudo"
        labels: str = "pseudo",  # final label: the labeller's opinion, or "style": the class that was asked for
        content_class: str = "",  # class of the content pictures; empty: the largest class
        iterations: int = 1,  # L-BFGS calls of 20 loss evaluations; the tool made 10, slower ones (see gatys)
        content_weight: float = 0.025,
        style_weight: float = 1.0,
        tv_weight: float = 8.5e-5,
        content_layer: str = "",  # empty: the encoder's own
        style_layers: Sequence[str] = (),  # empty: the encoder's own
        start: str = "content",  # or noise, grey
        compute: Compute | None = None,
    ) -> None:
        for knob, value, allowed in (("labels", labels, LABELS), ("start", start, gatys.STARTS)):
            if value not in allowed:
                raise BadInput(f"{knob} is '{value}'; it must be one of {', '.join(allowed)}.")
        if labels == "pseudo" and labeller is None:
            raise BadInput("Pseudo-labels need a labeller trained on the train fold: pass labeller, or labels='style'.")
        if iterations < 1 or min(content_weight, style_weight, tv_weight) < 0:
            raise BadInput("Style transfer needs at least 1 iteration and weights that are not negative.")
        self.encoder, self.labeller, self.pictures, self.resize = encoder, labeller, pictures, resize
        self.compute = compute or setup()
        self.knobs = {
            "labels": labels,
            "content_class": content_class,
            "iterations": iterations,
            "content_weight": content_weight,
            "style_weight": style_weight,
            "tv_weight": tv_weight,
            "content_layer": content_layer or encoder.content_layer,
            "style_layers": list(style_layers) or list(encoder.style_layers),
            "start": start,
        }
        self.sources: pd.DataFrame | None = None  # image_id and label of the train fold

    def fit(self, train: ImageSet, *, steps: int = 0, seed: int, callback: Callback | None = None) -> pd.DataFrame:
        """Remember the train fold as the pool of sources and measure the scale of the encoder's layers on it.

        Nothing is trained: ``steps`` and ``callback`` belong to the protocol and are not used.  Returns the history,
        one row per layer: ``step``, ``layer``, ``role``, ``rms`` (of its activations on train pictures).
        """
        require_train(train, "Style transfer")
        known = self.labeller and (self.labeller.classes, self.labeller.size)
        if known not in (None, (train.classes, train.size)):
            raise BadInput(
                f"The labeller knows classes {known[0]} at {known[1]} px, the train fold has {train.classes} at "
                f"{train.size} px: train it on this fold."
            )
        if train.table["image_id"].str.contains("|", regex=False).any():
            raise BadInput("An image_id contains '|', which separates source_ids: rename these images.")
        content_class = self.knobs["content_class"] or train.counts().index[0]
        if content_class not in train.classes:
            raise BadInput(f"content_class is '{content_class}'; the train fold has {', '.join(train.classes)}.")
        self.sources = train.table[["image_id", "label"]].copy()
        self.output_size, self.content_class = train.size, content_class

        chosen = self._fetch(self._calibration_ids(seed))
        self.encoder.to(self.compute.device)
        batches = (to_tensor(picture[None]).to(self.compute.device) for picture in chosen.values())
        layers = [*self.knobs["style_layers"], self.knobs["content_layer"]]
        self.scales = gatys.layer_scales(self.encoder, layers, batches)
        self._make_engine()
        roles = dict.fromkeys(self.knobs["style_layers"], "style")
        roles[self.knobs["content_layer"]] = "both" if self.knobs["content_layer"] in roles else "content"
        rows = [
            {"step": 1, "layer": layer, "role": roles[layer], "rms": gatys.FEATURE_RMS / scale}
            for layer, scale in self.scales.items()
        ]
        return pd.DataFrame(rows)

    def _calibration_ids(self, seed: int) -> list[str]:
        """Choose train pictures of all classes in turn, so that rare classes set the scale as much as common ones."""
        shuffled = self.sources.sample(frac=1, random_state=np.random.default_rng(sub_seed(seed, "calibration")))
        turn = shuffled.groupby("label").cumcount()
        return shuffled.assign(turn=turn).sort_values(["turn", "label"])["image_id"].head(N_CALIBRATION).tolist()

    def _make_engine(self) -> None:
        weights = {key: self.knobs[key] for key in ("content_weight", "style_weight", "tv_weight")}
        self.engine = gatys.Engine(
            encoder=self.encoder.to(self.compute.device),
            scales=self.scales,
            style_layers=self.knobs["style_layers"],
            content_layer=self.knobs["content_layer"],
            compute=self.compute,
            **weights,
        )

    def generate(self, labels: Sequence[str], *, seed: int, callback: Callback | None = None) -> ImageSet:
        """Return one image per asked label, at the study's size.

        Every train picture of the asked class serves as style once before any serves again, likewise the content class;
        ``source_ids`` is ``content|style``.  Each image follows from its own ``source_ids`` and ``image_seed``.  The
        table adds ``asked_label``, ``pseudo_label`` (empty without a labeller), ``label_confidence`` (the labeller's
        probability of the final ``label``; 1 without), and the final ``loss_content``, ``loss_style``, ``loss_tv``.
        No image is dropped for a low confidence: that choice is the arm's.
        ``callback`` receives ``step``, ``steps`` and the losses after each image, and now and then a ``grid``: content,
        style and result side by side.  Raises NonFiniteStyleTransfer, which keeps what was made before.
        """
        self._require_fitted()
        unknown = sorted(set(labels) - set(self.sources["label"]))
        if unknown:
            raise BadInput(f"No train picture has the label {unknown}: ask for labels of the train fold.")
        table = synthetic_table(self.name, labels, image_seeds(seed, len(labels)), asked_label=labels)
        table["source_ids"] = self._pairs(labels, seed)
        images = np.zeros((len(table), self.output_size, self.output_size, 3), np.uint8)
        made: list[dict[str, Any]] = []
        try:
            for step, (image, record, triple) in enumerate(self._transfer(table), start=1):
                images[step - 1] = image
                made.append({**record, **self._label(image, table["asked_label"].iloc[step - 1])})
                if callback:
                    grid = {"grid": triple()} if step % max(len(table) // 8, 1) == 0 else {}
                    callback({"step": step, "steps": len(table), **record, **grid})
        except gatys.NonFiniteLoss as error:
            content, style = table["source_ids"].iloc[len(made)].split("|")
            raise NonFiniteStyleTransfer(
                f"Style transfer of content {content} with style {style} stopped: {error}; lower the weights or use "
                f"precision float32 (the {len(made)} images made before are kept).",
                _finish(images, table, made),
            ) from None
        return _finish(images, table, made)

    def regenerate(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the pixels, uint8 ``(n, H, W, 3)``, of rows of a table that :meth:`generate` wrote.

        Bit for bit on the same machine with the same number of threads and precision, since every picture is optimised
        alone.
        """
        self._require_fitted()
        strangers = sorted(set("|".join(rows["source_ids"]).split("|")) - set(self.sources["image_id"]))
        if strangers and len(rows):
            raise BadInput(f"{strangers[:3]} are no pictures of this generator's train fold: give rows that it wrote.")
        images = [image for image, _, _ in self._transfer(rows)]
        return np.stack(images) if images else np.zeros((0, self.output_size, self.output_size, 3), np.uint8)

    def _pairs(self, labels: Sequence[str], seed: int) -> list[str]:
        """Choose ``content|style`` for each label; the first k pairs are the same however many are asked for."""
        pools = self.sources.groupby("label")["image_id"].agg(list)
        streams = {label: _cycle(pools[label], sub_seed(seed, "style", label)) for label in set(labels)}
        contents = _cycle(pools[self.content_class], sub_seed(seed, "content"))
        pairs = []
        for label in labels:
            style, content = next(streams[label]), next(contents)
            if content == style:  # within one class: a picture in its own style is no new picture
                content = next(contents)
            if content == style:
                raise BadInput(f"{style} is the only picture of class {label}: choose another content_class.")
            pairs.append(f"{content}|{style}")
        return pairs

    def _transfer(self, rows: pd.DataFrame) -> Iterator[tuple[np.ndarray, dict[str, Any], Callable[[], np.ndarray]]]:
        """Yield for each row the image, its losses, and a function that shows content, style and result in a row."""
        pairs = [text.split("|") for text in rows["source_ids"]]
        for first in range(0, len(rows), CHUNK):
            pictures = self._fetch(sorted({name for pair in pairs[first : first + CHUNK] for name in pair}))
            seeds = rows["image_seed"].iloc[first : first + CHUNK]
            for (content, style), seed in zip(pairs[first : first + CHUNK], seeds, strict=True):
                x = gatys.start_image(self.knobs["start"], self.engine.tensor(pictures[content]), int(seed))
                target = self.engine.content_target(content, pictures[content])
                styles = [(1.0, self.engine.style_target(style, pictures[style]))]
                x, best = self.engine.minimise(x, target, styles, iterations=self.knobs["iterations"])
                large = to_uint8(x)
                triple = partial(np.concatenate, [pictures[content], pictures[style], large[0]], axis=1)
                losses = {f"loss_{part}": best[part] for part in ("content", "style", "tv")}
                yield self.resize(large, self.output_size)[0], losses, triple

    def _fetch(self, names: list[str]) -> dict[str, np.ndarray]:
        """Return the pictures of these image ids by name, checked."""
        found = self.pictures(names)
        if found.dtype != np.uint8 or found.ndim != 4 or found.shape != (len(names), *found.shape[1:3], 3):
            raise BadInput(
                f"pictures gave {found.dtype} {found.shape} for {len(names)} ids; it must be uint8 (n, S, S, 3)."
            )
        return dict(zip(names, found, strict=True))

    def _label(self, image: np.ndarray, asked: str) -> dict[str, Any]:
        """Return the final label of an image, the pseudo-label and the confidence.

        One image at a time: the numbers do not depend on what else is in a batch.
        """
        if self.labeller is None:
            return {"label": asked, "pseudo_label": "", "label_confidence": 1.0}
        single = ImageSet(image[None], pd.DataFrame({"image_id": [""], "label": [asked]}))
        probabilities = self.labeller.classify(single, self.compute)[0]
        opinion = self.labeller.classes[int(probabilities.argmax())]
        label = opinion if self.knobs["labels"] == "pseudo" else asked
        confidence = float(probabilities[self.labeller.classes.index(label)])
        return {"label": label, "pseudo_label": opinion, "label_confidence": confidence}

    def save(self, folder: Path) -> None:
        """Write ``generator.json`` (knobs, layer scales, networks' provenance) and ``sources.csv``; no pictures."""
        self._require_fitted()
        write_settings(
            folder,
            self.name,
            knobs=self.knobs,
            scales=self.scales,
            content_class=self.content_class,
            output_size=self.output_size,
            encoder=self.encoder.provenance,
            labeller=self.labeller.provenance if self.labeller else None,
        )
        self.sources.to_csv(Path(folder) / SOURCES_FILE, index=False)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        encoder: Encoder,
        pictures: Pictures,
        resize: Resize,
        labeller: InDomain | None = None,
        compute: Compute | None = None,
    ) -> StyleTransfer:
        """Open what :meth:`save` wrote.

        Networks and pictures are not in the folder and must be passed again; networks with other weights than at the
        fit are refused.
        """
        settings = read_settings(folder)
        for role, network in (("encoder", encoder), ("labeller", labeller)):
            saved, given = settings[role], network.provenance if network else None
            if (saved and saved["sha256"]) != (given and given["sha256"]):
                before, now = ("none" if p is None else f"{p['name']} ({p['sha256'][:8]})" for p in (saved, given))
                raise BadInput(f"{folder} was made with the {role} {before}, but was given {now}: pass the same one.")
        generator = cls(
            encoder=encoder, pictures=pictures, resize=resize, labeller=labeller, compute=compute, **settings["knobs"]
        )
        generator.scales, generator.content_class = settings["scales"], settings["content_class"]
        generator.output_size = settings["output_size"]
        generator.sources = pd.read_csv(Path(folder) / SOURCES_FILE, dtype=str, keep_default_na=False)
        generator._make_engine()
        return generator

    def _require_fitted(self) -> None:
        if self.sources is None:
            raise BadInput("Style transfer has no source pictures yet: call fit with the train fold first.")


class NonFiniteStyleTransfer(BadInput):
    """A loss became NaN or infinite; ``finished`` is the ImageSet of the images made before."""

    def __init__(self, sentence: str, finished: ImageSet) -> None:
        super().__init__(sentence)
        self.finished = finished


def _cycle(names: list[str], seed: int) -> Iterator[str]:
    """Yield the names for ever, each once per round, every round in an order of its own."""
    random = np.random.default_rng(seed)
    while True:
        yield from (names[i] for i in random.permutation(len(names)))


def _finish(images: np.ndarray, table: pd.DataFrame, made: list[dict[str, Any]]) -> ImageSet:
    """Return the images that were made, with their columns."""
    done = table.iloc[: len(made)].copy()
    for column in made[0] if made else ("pseudo_label", "loss_content", "loss_style", "loss_tv"):
        done[column] = [record[column] for record in made]
    return ImageSet(images[: len(made)], done)
