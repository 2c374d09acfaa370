"""What can be known of a study only with its data and this machine: classes, masks, files, weights."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from stda import BadInput
from stda.images import added_counts
from stda.study import Study


def check_choices(study: Study, train: pd.Series) -> None:
    """Check what needs the data or the disk to be known: a class that is named, masks, files, enough images.

    ``train`` are the images per class of a train fold, as :meth:`stda.images.ImageSet.counts` orders them.
    """
    from stda.data import has_masks

    classes = sorted(train.index)
    check_amounts(study, train)
    named = {"nst.content_class": study.nst.content_class, "dcgan.small_class": study.dcgan.small_class}
    for key, name in named.items():
        if name and name not in classes:
            raise BadInput(f"{key} is '{name}', but the data has {', '.join(classes)}; choose one of these.")
    least = {"dcgan": ("steps", len(classes) if study.dcgan.mode == "per-class" else 1)}
    least["wgan"] = ("latent", len(classes) + 1)
    for name, (key, fewest) in least.items():
        given = getattr(getattr(study, name), key)
        if name in study.generators and given < fewest:
            raise BadInput(f"{name}.{key} is {given}; with {len(classes)} classes it must be {fewest} or more.")
    if study.results.metric in ("sensitivity", "specificity") and len(classes) != 2:
        raise BadInput(
            f"results.metric is '{study.results.metric}', which needs two classes; the data has {len(classes)}."
        )
    wants_masks = study.nst.regions or "lesion" in (study.nst.content_mask, study.nst.style_mask)
    if "nst" in study.generators and wants_masks and not has_masks(study.data.model_dump()):
        raise BadInput(
            f"nst asks for lesion masks, which source {study.data.source} lacks here; leave content_mask, style_mask "
            "and regions at their defaults."
        )
    if study.nst.start_file and not Path(study.nst.start_file).is_file():
        raise BadInput(f"nst.start_file {study.nst.start_file} is not there; give the path of a picture.")
    check_judge(study)
    _check_weights("data.encoder_weights", study.data.encoder, study.data.encoder_weights or "cache", "in-domain")
    _check_weights("classification.weights", study.classification.network, study.classification.weights, "vgg8")


def check_amounts(study: Study, train: pd.Series) -> None:
    """Raise for a class that is not there, and for an arm that its generator will not make enough images for."""

    def counts(section: object, *, largest: bool) -> dict[str, int]:
        knobs = {name: getattr(section, name) for name in ("ratio", "count", "balance", "classes")}
        return added_counts(train, **knobs, largest=largest)

    for arm in study.classification.arms:
        made = getattr(study, arm.generator) if arm.generator else None
        try:
            pool = counts(made, largest=made.all_classes) if made else {}
            wanted = counts(arm, largest=arm.protocol != "mix" and len(pool) == len(train))
        except BadInput as error:
            raise BadInput(f"Arm '{arm.arm}'{f' or {arm.generator}' if made else ''}: {error}") from None
        for name, n in wanted.items():
            if made and n > pool.get(name, 0):
                raise BadInput(
                    f"Arm '{arm.arm}' needs some {n} images of class {name}, but {arm.generator} makes "
                    f"{pool.get(name, 0)}: ask for fewer in the arm, or for more in {arm.generator} (ratio, count, "
                    "balance, classes)."
                )
        by_class = getattr(made, "labels", "") != "pseudo"
        if arm.labels == "shuffled" and by_class and sum(n > 0 for n in wanted.values()) < 2:
            raise BadInput(
                f"Arm '{arm.arm}' has labels shuffled, which need added images of two classes or more: name them "
                f"in classes, of the arm and of {arm.generator}, or take labels wrong."
            )
        opinion = arm.labels in ("pseudo", "soft") or not by_class
        missing = sorted(set(train.index) - set(wanted))
        if arm.protocol == "synthetic-only" and made and missing and not opinion:
            raise BadInput(
                f"Arm '{arm.arm}' trains on synthetic images only, but {arm.generator} makes none of class "
                f"{missing[0]}: set {arm.generator}.all_classes: true."
            )


def check_judge(study: Study) -> None:
    """Raise when the network that is named to measure fidelity has no weights here."""
    judge = study.data.judge
    if judge == "inception":
        from stda.encoders import cached_inception
        from stda.encoders.inception import missing_inception

        if not cached_inception().is_file():
            raise BadInput(f"data.judge is 'inception'. {missing_inception(cached_inception(), cached=True)}")
    elif judge not in ("auto", "encoder", "in-domain", study.data.encoder):
        _check_weights("data.judge", judge, "cache", "in-domain")


def _check_weights(key: str, network: str, weights: str, without: str) -> None:
    """Raise when a file of weights, given or in torchvision's cache, is not there; ``without`` is a network without."""
    if network == without or weights == "none":
        return
    if weights == "cache":
        from stda.encoders import cached_weights

        weights = str(cached_weights(network))
    if not Path(weights).is_file():
        remedy = {"data.judge": "judge: auto", "data.encoder_weights": "encoder: in-domain"}.get(key, "weights: none")
        raise BadInput(f"{key} of {network}: {weights} is not there; give the path of the file, or choose {remedy}.")
