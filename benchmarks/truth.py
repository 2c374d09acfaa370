"""Give the protocol a question whose answer is known: generators that are perfect, and that are noise, on the phantom.

Run it alone, ``python benchmarks/truth.py``: about half an hour on two cores.  The phantom draws as many images as one
likes, so a *perfect* generator can be had: fresh images of the true distribution.  It must help, about as much as held-
back real images do (the oracle), and each of its images must be worth about one real image.  A *noise* generator must
do no better than its own placebo (noise with shuffled labels), and wrong labels must do harm.  Every arm goes through
the code of the study: assembling, training, verdict, placebos, exchange rate.

``predictions.csv`` is written to the folder ``--work`` (default: a temporary one) and read from there if it is there
already; the tables go to ``reports/reference/truth``.  The last line is one JSON object of what was found.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from stda import classify, data, measure
from stda.compute import Compute, setup
from stda.images import ImageSet
from stda.study import sub_seed

REFERENCE = Path(__file__).resolve().parent.parent / "reports" / "reference" / "truth"
SIZE, N_IMAGES, STEPS, BATCH = 32, 6000, 400, 64
# lesions cost nothing here: half of them for the test, and 900 images to train on
FOLDS = {"val_fraction": 0.2, "test_fraction": 0.5, "oracle_fraction": 0.15}
RATIO = 1.0  # added images per real one of every class but the largest
SMALLEST_EFFECT = 0.02

ARMS = [
    classify.Arm("none", augment="none", sampler="shuffle"),
    classify.Arm("balanced"),
    classify.Arm("duplicates", "oversample", RATIO),
    classify.Arm("perfect", "perfect", RATIO),
    classify.Arm("noise", "noise", RATIO),
    classify.Arm("perfect-wrong", "perfect", RATIO, labels="wrong"),
    classify.Arm("noise-shuffled", "noise", RATIO, labels="shuffled"),
    classify.Arm("oracle", "oracle", RATIO),
    classify.Arm("half", real_share=0.5),
    classify.Arm("quarter", real_share=0.25),
]
SYNTHETIC, BASELINES = ["perfect", "noise"], ["none", "balanced", "duplicates"]
CURVE = ["quarter", "half", "balanced", "oracle"]
PLACEBOS = {"perfect": ["duplicates", "perfect-wrong"], "noise": ["duplicates", "noise-shuffled"]}


def draw(n: int, seed: int) -> ImageSet:
    """Return n drawn lesions."""
    return data.load("phantom", size=SIZE, n_images=n, seed=seed)


def as_generator(name: str, images: np.ndarray, labels: np.ndarray) -> ImageSet:
    """Return pictures with the table of a generator's."""
    ids = [f"{name}-{i:06d}" for i in range(len(labels))]
    table = pd.DataFrame({"image_id": ids, "label": labels, "group": ids, "split": "synthetic", "generator": name})
    return ImageSet(images, table)


def pools(train: ImageSet, seed: int) -> dict[str, ImageSet]:
    """Return the images of the perfect generator and of noise, as many of each class as the train fold asks for."""
    fresh = draw(2 * len(train), sub_seed(seed, "perfect") % 2**31)
    rows = [np.flatnonzero(fresh.labels == label)[:n] for label, n in train.counts().items()]
    perfect = fresh.select(np.concatenate(rows))
    pixels = np.random.default_rng(sub_seed(seed, "noise")).integers(0, 256, perfect.images.shape, dtype=np.uint8)
    return {
        "perfect": as_generator("perfect", perfect.images, perfect.labels),
        "noise": as_generator("noise", pixels, perfect.labels),
    }


def run_replicate(everything: ImageSet, replicate: int, compute: Compute) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return predictions and compositions of all arms of one replicate."""
    seed = sub_seed(0, "truth", replicate)
    folds = data.split(everything.table, **FOLDS, seed=seed)
    images = ImageSet(everything.images, everything.table.assign(split=folds))
    train, val, test, kept = (images.select(split=fold) for fold in ("train", "val", "test", "held-back"))
    made, tables, compositions = {**pools(train, seed), "oracle": kept}, [], []
    for arm in ARMS:
        started = time.perf_counter()
        training = classify.assemble(arm, train, made.get(arm.synthetic), seed=seed)
        fitted = classify.fit(
            *(training.images, val), rates=[2e-3], seeds=[sub_seed(seed, arm.name)], steps=STEPS, batch_size=BATCH,
            classes=train.classes, augment=arm.augment, sampler=arm.sampler, compute=compute,
        )  # fmt: skip
        for fold in (val, test):
            answers = classify.predict_mean(fitted.members, fold, compute)
            tables.append(classify.prediction_table(fold, answers, train.classes).assign(arm=arm.name))
        compositions.append(training.composition.assign(arm=arm.name))
        print(f"replicate {replicate}, {arm.name}: {time.perf_counter() - started:.0f} s", flush=True)
    return (pd.concat(part).assign(replicate=replicate) for part in (tables, compositions))


def trained(work: Path, replicates: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return predictions and compositions of all replicates: those in the folder, the missing ones made."""
    compute, everything = setup(), draw(N_IMAGES, 0)
    for replicate in range(replicates):
        if not (work / f"composition-{replicate}.csv").is_file():
            predictions, composition = run_replicate(everything, replicate, compute)
            predictions.to_csv(work / f"predictions-{replicate}.csv", index=False)
            composition.to_csv(work / f"composition-{replicate}.csv", index=False)
    names = range(replicates)
    return tuple(
        pd.concat([pd.read_csv(work / f"{what}-{r}.csv") for r in names], ignore_index=True)
        for what in ("predictions", "composition")
    )


def main() -> None:
    """Train what is missing, judge, write the tables, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=5)
    parser.add_argument("--work", type=Path, default=None, help="folder that keeps predictions between runs")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="truth-"))
    work.mkdir(parents=True, exist_ok=True)
    predictions, composition = trained(work, given.replicates)
    judge(predictions, composition)


def judge(predictions: pd.DataFrame, composition: pd.DataFrame) -> None:
    """Judge as notebook 08 does, write the tables and print what was found."""
    rules = {"metric": "balanced_accuracy", "seed": 0}
    verdicts = measure.judge(predictions, SYNTHETIC, baselines=BASELINES, smallest_effect=SMALLEST_EFFECT, **rules)
    placebos = measure.placebo_table(predictions, PLACEBOS, ["oracle"], pool=[*SYNTHETIC, *BASELINES], **rules)
    exchange = measure.exchange_table(predictions, composition, curve_arms=CURVE, synthetic=["perfect"], **rules)
    arms = measure.arm_table(predictions, SYNTHETIC, seed=0)
    tables = {"verdicts": verdicts, "placebos": placebos, "exchange": exchange, "arms": arms}
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.round(4).to_csv(REFERENCE / f"{name}.csv", index=False)
        print(f"\n{name}\n{table.round(3).to_string(index=False)}")
    print(measure.placebo_sentence(placebos, SYNTHETIC))
    print(measure.exchange_sentence(exchange, curve_arms=CURVE))
    shown = placebos.set_index(["arm", "against"])["shown"]
    found = {f"{row.arm}": row.verdict for row in verdicts.itertuples()}
    found |= {f"{arm} to {other}": shown[arm, other] for arm, other in shown.index}
    print(json.dumps({**found, "real images per perfect one": round(float(exchange["worth_each"].iloc[0]), 2)}))


if __name__ == "__main__":
    main()
