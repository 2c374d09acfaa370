"""Style transfer as a generator (ST-DA, Mikolajczyk and Grochowski 2018, 2019).

The picture of a lesion of one class (as published: benign; here the largest class unless told otherwise) is redrawn in
the style of a lesion of the asked class, both from the train fold; a classifier trained on the train fold then gives
its opinion of what it became, the pseudo-label.  Pictures are made at the size that ``pictures`` gives and resized to
the study's size by the function that resizes the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import ValidationError

from stda import BadInput
from stda.compute import Compute, setup
from stda.encoders import Encoder, InDomain, encode
from stda.generator_sections import NstSection
from stda.generators.base import Callback, Generator, Unfinished, read_settings, write_settings
from stda.generators.pairs import BY_DISTANCE
from stda.generators.style.adain import FeedForward
from stda.generators.style.engine import FEATURE_RMS
from stda.generators.style.plan import Plan, pair_keys
from stda.generators.style.studio import Finished, Pair, PairFailed, Pictures, Studio
from stda.images import ImageSet, require_train
from stda.runs import sha256
from stda.study import sentence

Resize = Callable[[np.ndarray, int], np.ndarray]

SOURCES_FILE, FEATURES_FILE, NETWORK_DIR = "sources.csv", "features.npy", "feedforward"
N_CALIBRATION = 32  # train pictures that set the scale of the encoder's layers


class StyleTransfer(Generator):
    """Images of asked classes by style transfer between real training pictures.

    The knobs are those of :class:`stda.generator_sections.NstSection`, where their defaults and meanings are.
    """

    name: ClassVar[str] = "nst"

    def __init__(
        self,
        *,
        encoder: Encoder,  # whose layers define content and style
        pictures: Pictures,  # image ids -> the originals, uint8 (H, W, 3) each, at the size to work at
        resize: Resize,  # (uint8 images, size) -> uint8 images: how the real images reached the study's size
        labeller: InDomain | None = None,  # gives pseudo-labels; needed for labels="pseudo"
        masks: Pictures | None = None,  # image ids -> uint8 (H, W) each: the lesions, for the knobs that ask for them
        compute: Compute | None = None,
        **knobs: Any,
    ) -> None:
        try:
            self.knobs = NstSection(**knobs)
        except ValidationError as error:
            raise BadInput(f"Style transfer: {sentence(error, NstSection)}") from None
        if self.knobs.labels == "pseudo" and labeller is None:
            raise BadInput("Pseudo-labels need a labeller trained on the train fold: pass labeller, or labels='style'.")
        self.encoder, self.labeller, self.resize = encoder, labeller, resize
        self.pictures, self.masks = pictures, masks
        self.compute = compute or setup()
        self.studio = Studio(encoder=encoder, knobs=self.knobs, pictures=pictures, masks=masks, compute=self.compute)
        self.sources: pd.DataFrame | None = None  # image_id and label of the train fold
        self.features: np.ndarray | None = None  # of the sources, for pairs by distance
        self.calibration: list[str] = []  # ids of the pictures that set the scale of the layers
        self.output_size = 0  # of the images; 0: as large as they are made

    def fit(self, train: ImageSet, *, steps: int = 0, seed: int, callback: Callback | None = None) -> pd.DataFrame:
        """Remember the train fold as the pool of sources and measure the scale of the encoder's layers on it.

        Engine "feedforward" also trains its network, for ``steps`` steps; the other trains nothing.  Returns the
        history of that training, or no rows.  :attr:`layers` then tells the layers that are compared.
        """
        require_train(train, "Style transfer")
        known = self.labeller and (self.labeller.classes, self.labeller.size)
        if known not in (None, (train.classes, train.size)):
            raise BadInput(
                f"The labeller knows classes {known[0]} at {known[1]} px, the train fold has {train.classes} at "
                f"{train.size} px: train it on this fold."
            )
        odd = train.table["image_id"].str.contains(r"[|;@]", regex=True)
        if odd.any():
            name = train.table["image_id"][odd].iloc[0]
            raise BadInput(f"Image id '{name}' contains '|', ';' or '@', which separate ids here: rename these images.")
        self.content_class = self.knobs.content_class or train.counts().index[0]
        if self.content_class not in train.classes:
            raise BadInput(f"content_class is '{self.content_class}'; the train fold has {', '.join(train.classes)}.")
        self.sources, self.output_size = train.table[["image_id", "label"]].copy(), train.size
        if self.knobs.pairs in BY_DISTANCE:
            self.features = encode(self.encoder, train.images, compute=self.compute)
        sample = np.random.default_rng(seed).permutation(len(self.sources))[:N_CALIBRATION]
        self.calibration = self.sources["image_id"].iloc[np.sort(sample)].tolist()
        self.studio.engine.calibrate(self.studio.pictures(self.calibration))
        if self.knobs.engine == "feedforward":
            return self.train_network(steps=steps, seed=seed, callback=callback)
        return pd.DataFrame({"step": []}, dtype=int)

    def train_network(self, *, steps: int, seed: int, callback: Callback | None = None) -> pd.DataFrame:
        """Train the feed-forward network on the pictures of the train fold and return the history."""
        self.studio.network = FeedForward(self.encoder, compute=self.compute)
        return self.studio.network.fit(
            self.studio.pictures,
            self.sources["image_id"].tolist(),
            steps=steps,
            batch_size=self.knobs.feedforward_batch,
            seed=seed,
            callback=callback,
        )

    @property
    def layers(self) -> pd.DataFrame:
        """The layers that are compared: ``layer``, ``role`` and ``rms`` of its activations on train pictures."""
        engine = self.studio.engine
        roles = dict.fromkeys(engine.style_layers, "style")
        roles[engine.content_layer] = "both" if engine.content_layer in roles else "content"
        rms = [FEATURE_RMS / engine.scales[layer] for layer in roles]
        return pd.DataFrame({"layer": list(roles), "role": list(roles.values()), "rms": rms})

    def vary(self, **changes: Any) -> StyleTransfer:
        """Return this generator with other knobs (or ``pictures`` and ``masks``), fitted on the same sources.

        Its pictures are squares of the working size.
        """
        self._require_fitted()
        parts = {"pictures": self.pictures, "masks": self.masks, "resize": self.resize, "compute": self.compute}
        values = {**self.knobs.model_dump(), **parts, **changes}
        other = StyleTransfer(encoder=self.encoder, labeller=self.labeller, **values)
        other.sources, other.content_class, other.features = self.sources, self.content_class, self.features
        other.calibration, other.output_size = self.calibration, other.knobs.style_size
        other.studio.engine.calibrate(other.studio.pictures(self.calibration))
        other.studio.network = self.studio.network
        return other

    # ------------------------------------------------------------------------------------------ which images

    def generate(self, labels: Sequence[str], *, seed: int, callback: Callback | None = None) -> ImageSet:
        """Return one image per asked label, at the study's size.

        Every train picture of the asked class serves as style once before any serves again, likewise the content
        pictures.  The table has the columns of :class:`Plan`, and ``pseudo_label`` and ``p_<class>``, the labeller's
        opinion (empty without one), ``label_confidence``, its probability of the final ``label``, and ``loss_content``,
        ``loss_style`` and ``loss_tv``, the losses at the end.
        No image is dropped for a low confidence: that choice is the arm's.

        ``callback`` gets ``step``, ``steps`` and losses per image, and now and then a ``grid``: content, style, result.
        Raises Unfinished, which keeps what was made before.
        """
        self._require_fitted()
        unknown = sorted(set(labels) - set(self.sources["label"]))
        if unknown:
            raise BadInput(f"No train picture has the label {unknown}: ask for labels of the train fold.")
        return self._make(self._plan().asked(labels, seed=seed), callback)

    @property
    def rows_at_once(self) -> int:
        """Planned rows that share a pair or a batch."""
        return self._plan().rows_at_once

    def plan(self, start: int, stop: int, *, shares: Mapping[str, float], seed: int) -> pd.DataFrame:
        """Return the rows ``start`` to ``stop`` of an endless table of images to be made (:meth:`Plan.stretch`)."""
        return self._plan().stretch(start, stop, shares=shares, seed=seed)

    def _plan(self) -> Plan:
        self._require_fitted()
        return Plan(self.name, self.knobs, self.sources, self.content_class, self.features)

    # ------------------------------------------------------------------------------------------ their pixels

    def make(self, rows: pd.DataFrame) -> ImageSet:
        """Return the images of planned rows, labelled."""
        return self._make(rows)

    def regenerate(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the pixels, uint8 ``(n, H, W, 3)``, of rows of a table that this generator wrote.

        Bit for bit on the same machine with the same number of threads and precision.
        """
        images = [self._sized(done.picture) for done in self._transfer(rows)]
        return np.stack(images) if images else np.zeros((0, self.output_size, self.output_size, 3), np.uint8)

    def losses(self, images: ImageSet) -> pd.DataFrame:
        """Return the ``content``, ``style``, ``tv`` and ``total`` loss of images of the working size.

        The rows must name their ``source_ids``; who made the images does not matter.
        """
        self._require_fitted()
        own = images.table["source_ids"] + "@0"
        found = [self.studio.losses(Pair.read(pair), image) for pair, image in zip(own, images.images, strict=True)]
        return pd.DataFrame(found)

    def _make(self, table: pd.DataFrame, callback: Callback | None = None) -> ImageSet:
        """Make and label the images of a table; what a non-finite loss leaves behind is kept in the error."""
        images, made = [], []
        try:
            for step, done in enumerate(self._transfer(table), start=1):
                row = table.iloc[step - 1]
                losses = {f"loss_{part}": done.losses[part] for part in ("content", "style", "tv")}
                images.append(self._sized(done.picture))
                made.append({**losses, **self._label(done.picture, row["asked_label"])})
                if callback:
                    grid = {"grid": self._triple(row, done.picture)} if step % max(len(table) // 8, 1) == 0 else {}
                    callback({"step": step, "steps": len(table), **losses, **grid})
        except PairFailed as error:
            raise Unfinished(
                f"Style transfer stopped after {len(made)} images: {str(error).rstrip('.')}; leave this picture out, "
                "lower the weights, or use precision float32.",
                self._finished(images, table, made),
            ) from None
        return self._finished(images, table, made)

    def _transfer(self, rows: pd.DataFrame) -> Iterator[Finished]:
        """Yield the picture of each row; neighbours that share a pair or a batch are made together."""
        self._require_fitted()
        strangers = sorted(set("|".join(rows["source_ids"]).split("|")) - set(self.sources["image_id"]))
        if strangers and len(rows):
            raise BadInput(f"{strangers[:3]} are no pictures of this generator's train fold: give rows that it wrote.")
        own = pair_keys(rows).tolist()
        company = rows["batch"].tolist() if "batch" in rows else own
        iterations = rows["iteration"].tolist()
        for text, block in groupby(range(len(rows)), key=company.__getitem__):
            places, members = list(block), text.split(";")
            shots = self.studio.restyle([Pair.read(m) for m in members], [iterations[i] for i in places])
            made = {(members[done.place], done.iteration): done for shot in shots for done in shot}
            for i in places:
                if (own[i], iterations[i]) not in made:
                    content, style = own[i].rsplit("@", 1)[0].split("|", 1)
                    raise PairFailed(f"the loss of content {content} with style {style} is not finite")
                yield made[own[i], iterations[i]]

    def _sized(self, picture: np.ndarray) -> np.ndarray:
        """Return a picture at the size of the output."""
        return self.resize(picture[None], self.output_size)[0] if self.output_size else picture

    def _label(self, picture: np.ndarray, asked: str) -> dict[str, Any]:
        """Return the final label of a picture, the pseudo-label, its probabilities and the confidence.

        One image at a time: the numbers do not depend on what else is in a batch.
        """
        if self.labeller is None:
            return {"label": asked, "pseudo_label": "", "label_confidence": 1.0}
        small = self.resize(picture[None], self.labeller.size)
        single = ImageSet(small, pd.DataFrame({"image_id": [""], "label": [asked]}))
        probabilities = self.labeller.classify(single, self.compute)[0].astype(float)
        opinions = dict(zip(self.labeller.classes, probabilities, strict=True))
        opinion = max(opinions, key=opinions.get)
        label = opinion if self.knobs.labels == "pseudo" else asked
        shares = {f"p_{name}": round(p, 6) for name, p in opinions.items()}
        return {"label": label, "pseudo_label": opinion, "label_confidence": opinions[label], **shares}

    def _triple(self, row: pd.Series, picture: np.ndarray) -> np.ndarray:
        """Return content, (first) style and result side by side, squares of one size."""
        content, style = self.studio.pictures(row["source_ids"].split("|")[:2])
        return np.concatenate(
            [self.resize(p[None], self.knobs.style_size)[0] for p in (content, style, picture)], axis=1
        )

    def _finished(self, images: list[np.ndarray], table: pd.DataFrame, made: list[dict[str, Any]]) -> ImageSet:
        """Return the images that were made, with their columns."""
        done = table.iloc[: len(made)].copy()
        for column in made[0] if made else ("pseudo_label", "loss_content", "loss_style", "loss_tv"):
            done[column] = [record[column] for record in made]
        size = self.output_size or self.knobs.style_size
        return ImageSet(np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8), done)

    # ------------------------------------------------------------------------------------------ on disk

    def save(self, folder: Path) -> None:
        """Write ``generator.json`` (knobs, layer scales, networks' provenance) and ``sources.csv``; no pictures.

        The feed-forward network and the features of the sources are written where they are used.
        """
        self._require_fitted()
        write_settings(
            folder,
            self.name,
            knobs=self.knobs.model_dump(mode="json"),
            scales=self.studio.engine.scales,
            calibration=self.calibration,
            content_class=self.content_class,
            output_size=self.output_size,
            start_file=_digest(self.knobs.start_file),
            encoder=self.encoder.provenance,
            labeller=self.labeller.provenance if self.labeller else None,
        )
        self.sources.to_csv(Path(folder) / SOURCES_FILE, index=False)
        if self.features is not None:
            np.save(Path(folder) / FEATURES_FILE, self.features)
        if self.studio.network is not None:
            (Path(folder) / NETWORK_DIR).mkdir(exist_ok=True)
            self.studio.network.save(Path(folder) / NETWORK_DIR)

    @classmethod
    def load(cls, folder: Path, *, encoder: Encoder, labeller: InDomain | None = None, **parts: Any) -> StyleTransfer:
        """Open what :meth:`save` wrote.

        Networks and pictures are not in the folder and must be passed again; networks with other weights than at the
        fit are refused.
        """
        folder, settings = Path(folder), read_settings(folder)
        for role, network in (("encoder", encoder), ("labeller", labeller)):
            saved, given = settings[role], network.provenance if network else None
            if (saved and saved["sha256"]) != (given and given["sha256"]):
                before, now = ("none" if p is None else f"{p['name']} ({p['sha256'][:8]})" for p in (saved, given))
                raise BadInput(f"{folder} was made with the {role} {before}, but was given {now}: pass the same one.")
        if _digest(settings["knobs"]["start_file"]) != settings["start_file"]:
            raise BadInput(
                f"{settings['knobs']['start_file']} is not the picture that {folder} began with: restore it."
            )
        generator = cls(encoder=encoder, labeller=labeller, **parts, **settings["knobs"])
        generator.content_class, generator.output_size = settings["content_class"], settings["output_size"]
        generator.studio.engine.scales, generator.calibration = settings["scales"], settings["calibration"]
        generator.sources = pd.read_csv(folder / SOURCES_FILE, dtype=str, keep_default_na=False)
        if (folder / FEATURES_FILE).is_file():
            generator.features = np.load(folder / FEATURES_FILE, allow_pickle=False)
        if (folder / NETWORK_DIR).is_dir():
            generator.studio.network = FeedForward.load(folder / NETWORK_DIR, encoder, compute=generator.compute)
        return generator

    def _require_fitted(self) -> None:
        if self.sources is None:
            raise BadInput("Style transfer has no source pictures yet: call fit with the train fold first.")


def _digest(path: str) -> str:
    """Return the SHA-256 of a file, "" for none."""
    return sha256(Path(path)) if path and Path(path).is_file() else ""
