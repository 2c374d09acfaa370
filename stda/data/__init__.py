"""Where images come from, how they are split, and what leaks between the folds."""

from stda.data.artefacts import INSERTED, LIGHT, alterations, insert, uneven_light
from stda.data.decode import resize
from stda.data.phantom import bayes_scores, ceiling
from stda.data.sources import (
    SOURCES,
    content_digest,
    describe,
    file_digest,
    fingerprint,
    has_masks,
    load,
    mask_reader,
    picture_reader,
    pictures,
    skipped,
)
from stda.data.splits import split
from stda.images import HELD_BACK

__all__ = [
    "HELD_BACK",
    "INSERTED",
    "LIGHT",
    "SOURCES",
    "alterations",
    "bayes_scores",
    "ceiling",
    "content_digest",
    "describe",
    "file_digest",
    "fingerprint",
    "has_masks",
    "insert",
    "load",
    "mask_reader",
    "picture_reader",
    "pictures",
    "resize",
    "skipped",
    "split",
    "uneven_light",
]
