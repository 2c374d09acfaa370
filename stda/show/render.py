"""A notebook as one HTML file: no network, alt text kept, equations as MathML, code folded but reachable."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stda import BadInput
from stda.show.progress import PREFIX

if TYPE_CHECKING:
    from nbconvert import HTMLExporter
    from nbformat import NotebookNode

STATUSES = ("done", "failed", "running", "waiting")
# nothing that needs a script: widgets and JavaScript outputs show their plain text
PRIORITY = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/latex", "text/plain"]


def render_notebook(
    notebook_path: Path | str,
    html_path: Path | str,
    *,
    title: str,
    status: str = "done",
    message: str = "",
    links: Mapping[str, str] | None = None,
    study: str = "",
) -> Path:
    """Write a notebook as one self-contained HTML file and return its path.

    ``status`` is done, failed, running or waiting; anything but done shows a banner with ``message``.  ``links`` are
    words to relative addresses for the header, e.g. ``{"All results": "../index.html"}``.  The file appears whole or
    not at all.  Raises BadInput when the notebook is missing or is not one.
    """
    if status not in STATUSES:
        raise BadInput(f"Unknown status {status!r} of a notebook; it is one of {list(STATUSES)}.")
    notebook_path, html_path = Path(notebook_path), Path(html_path)
    notebook = read_notebook(notebook_path)
    page = {
        "title": title,
        "study": study,
        "status": status,
        "message": message,
        "links": dict(links or {}),
        "headings": [],
        "source": notebook_path.name,
        "folder": str(notebook_path.parent),
    }
    exporter = _exporter(page)
    resources = {"metadata": {"name": title, "path": str(notebook_path.parent)}}
    text, _ = exporter.from_notebook_node(notebook, resources=resources)
    write_atomic(html_path, text)
    return html_path


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook file; one sentence when it is not there or is no notebook."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except OSError as error:
        raise BadInput(f"The notebook {path} cannot be read ({error.strerror}).") from error
    except Exception as error:  # nbformat has no common base for what a broken file can raise
        raise BadInput(f"{path} is not a notebook ({type(error).__name__}): restore it from the repository.") from error


def write_atomic(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it: nobody ever reads half a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _exporter(page: dict[str, Any]) -> HTMLExporter:
    """Build nbconvert's HTML exporter around our template and filters."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter
    from traitlets.config import Config

    config = Config({"NbConvertBase": {"display_data_priority": PRIORITY}})
    exporter = HTMLExporter(
        config=config, extra_template_basedirs=[str(Path(__file__).parent)], template_name="html", embed_images=True
    )
    # a saved notebook holds every flush as an output of its own: join them, or a log of an hour is a thousand folds
    exporter.register_preprocessor("nbconvert.preprocessors.CoalesceStreamsPreprocessor", enabled=True)
    page["highlight_css"] = HtmlFormatter(style="default").get_style_defs(".highlight")
    # a global, because the exporter copies its resources and would lose the headings that the filter collects
    exporter.environment.globals["page"] = page
    exporter.register_filter("stda_markdown", lambda source, cell: markdown(source, cell, page))
    exporter.register_filter("stda_stream", split_stream)
    exporter.register_filter("stda_math", lambda tex: mathml(tex.strip().strip("$"), display=True))
    return exporter


def markdown(source: str, cell: Mapping[str, Any], page: dict[str, Any]) -> str:
    """Turn a Markdown cell into HTML with MathML; adds its headings, with unique anchors, to ``page["headings"]``."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def heading(self, text: str, level: int, **attrs: Any) -> str:
            anchor = _anchor(text, page["headings"])
            page["headings"].append({"level": level, "anchor": anchor, "html": re.sub(r"</?a\b[^>]*>", "", text)})
            link = f'<a class="anchor" href="#{anchor}" aria-label="Link to this section">#</a>'
            return f'<h{level} id="{anchor}">{text}{link}</h{level}>\n'

        def inline_math(self, body: str) -> str:
            return mathml(body)

        def block_math(self, body: str) -> str:
            return mathml(body, display=True)

        def latex_environment(self, name: str, body: str) -> str:
            return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", display=True)

    renderer = Renderer(escape=False, attachments=cell.get("attachments", {}), embed_images=True, path=page["folder"])
    return MarkdownWithMath(renderer=renderer).render(source)


def _anchor(text: str, headings: list[dict]) -> str:
    words = html.unescape(re.sub(r"<[^>]+>", "", text)).lower()
    anchor = re.sub(r"[^\w]+", "-", words).strip("-") or "section"
    taken = {heading["anchor"] for heading in headings}
    name, n = anchor, 1
    while name in taken:
        n += 1
        name = f"{anchor}-{n}"
    return name


def mathml(tex: str, *, display: bool = False) -> str:
    """Turn TeX into MathML, which browsers draw without a script; what cannot be turned is shown as TeX source."""
    from latex2mathml.converter import convert

    # the converter knows align* but not aligned and gathered, which mean the same inside $$
    plain = re.sub(r"(\\(?:begin|end)\{)(?:aligned|align|gathered|equation\*?|split)\}", r"\1align*}", tex.strip())
    try:
        made = convert(plain, display="block" if display else "inline")
    except Exception:  # the converter raises a dozen unrelated kinds on what it does not know
        made = ""
    if not made or re.search(r"\\[A-Za-z]", made):
        return f'<code class="tex" title="this equation is shown as its TeX source">{html.escape(tex.strip())}</code>'
    made = re.sub(r"&(?!#?\w+;)", "&amp;", made)
    made = made.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # "is distributed as", not a keyboard tilde
    return made.replace("<math ", f'<math alttext="{html.escape(tex.strip(), quote=True)}" ', 1)


def split_stream(text: str) -> dict[str, str]:
    """Part a stream output into ``log`` (progress lines and redrawn bars) and ``text`` (what the notebook says)."""
    log, words = [], []
    for line in text.split("\n"):
        redrawn = "\r" in line.rstrip("\r")
        line = line.rstrip("\r").rsplit("\r", 1)[-1]
        (log if redrawn or line.startswith(PREFIX.strip()) else words).append(line)
    return {"log": "\n".join(log).strip("\n"), "text": "\n".join(words).strip("\n")}
