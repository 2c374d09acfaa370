"""stda: do synthetic images help a classifier on a small, imbalanced medical image data set?

The notebooks tell the story; this package is the machinery they import.  See README.md for the map of the rooms.
"""

__version__ = "0.1.0"


class BadInput(ValueError):
    """A mistake in what the user gave: one sentence that names the thing, its value and the remedy.

    The command line prints the sentence and exits with code 2; a notebook shows the sentence without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """Show the sentence alone in IPython (its hook for exceptions that render themselves)."""
        return [f"BadInput: {self}"]
