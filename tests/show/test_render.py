import base64
import re

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from stda import BadInput
from stda.show import render_notebook
from stda.show.render import mathml, split_stream

PIXEL = base64.b64encode(b"not really a picture").decode()


def cell(source, *outputs, tags=(), count=1):
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)}, execution_count=count)


def data(kind, value, plain):
    return new_output("display_data", data={kind: value, "text/plain": plain})


def notebook():
    figure = data("image/png", PIXEL, "Figure")
    figure.metadata = {"image/png": {"alt": 'A "rising" <line>'}}
    log = "progress | WGAN | 1/2\nprogress | WGAN | 2/2\nbeware <now>\n"
    said = [new_output("stream", name="stderr", text=log), new_output("stream", name="stdout", text="plain words\n")]
    return new_notebook(
        cells=[
            new_markdown_cell("# Title $x^2$"),
            cell("import numpy"),
            cell("steps = 200  # updates", tags=["parameters"]),
            cell("steps = 5", tags=["injected-parameters"]),
            new_markdown_cell("## 1. Losses\n\n$$L = \\frac{a}{b} & \\text{if } a < b$$\n\n### Detail\n\n## 1. Losses"),
            cell("train()", *said, figure),
            cell("frame", data("text/html", "<table><tr><td>7</td></tr></table>", "7")),
            cell("widget", data("application/javascript", "evil()", "harmless")),
            cell("latex", data("text/latex", "$\\alpha$", "alpha")),
            cell("[1, 2]", new_output("execute_result", data={"text/plain": "[1, 2]"}, execution_count=1)),
        ]
    )


@pytest.fixture
def render(tmp_path):
    def run(nb, **knobs):
        source = tmp_path / "a folder" / "04_wgan.ipynb"
        source.parent.mkdir(exist_ok=True)
        nbformat.write(nb, source)
        path = render_notebook(source, tmp_path / "out put" / "04.html", title="04 WGAN & more", **knobs)
        text = path.read_text(encoding="utf-8")
        return text, BeautifulSoup(text, "html.parser")

    return run


def test_the_page_needs_no_network(render):
    text, soup = render(notebook())
    assert [tag for tag in soup.find_all(src=True) if not tag["src"].startswith("data:")] == []
    assert soup.find_all("link") == []
    assert len(soup.find_all("script")) == 1
    assert "http" not in re.sub(r"http://www\.w3\.org/1998/Math/MathML", "", text)
    assert "evil()" not in text
    assert "harmless" in text


def test_alt_text_and_tables_are_kept(render):
    _, soup = render(notebook())
    assert soup.img["alt"] == 'A "rising" <line>'
    assert soup.img["src"] == "data:image/png;base64," + PIXEL
    assert [td.text for td in soup.find_all("td")] == ["7"]
    assert "[1, 2]" in [pre.text.strip() for pre in soup.find_all("pre")]


def test_equations_are_mathml(render):
    _, soup = render(notebook())
    assert len(soup.find_all("math")) == 3  # a heading, a block, an output
    assert soup.find("math", display="block").mfrac
    assert "$" not in soup.main.text


def test_code_is_folded_and_parameters_are_open(render):
    _, soup = render(notebook())
    folds = soup.find_all("details", class_="code")
    assert [fold.has_attr("open") for fold in folds] == [False, True, True, False, False, False, False, False]
    assert [fold.summary.text for fold in folds[1:3]] == ["Parameters and their defaults", "Parameters of this run"]
    assert "train" in folds[3].pre.text
    assert soup.find("button", id="all-code").has_attr("hidden")  # nothing dead without a script


def test_logs_are_folded_away_from_words(render):
    _, soup = render(notebook())
    assert soup.find("details", class_="log").pre.text.strip().count("progress |") == 2
    assert soup.find("details", class_="stderr").pre.text.strip() == "beware <now>"
    assert "plain words" in [pre.text.strip() for pre in soup.find_all("pre") if not pre.find_parent("details")]


def test_headings_have_unique_anchors_and_a_table_of_contents(render):
    _, soup = render(notebook())
    targets = [a["href"][1:] for a in soup.nav.find_all("a")]
    assert targets == ["1-losses", "detail", "1-losses-2"]
    assert all(len(soup.find_all(id=target)) == 1 for target in targets)


def test_header_and_links(render):
    _, soup = render(notebook(), links={"All results": "../index.html"}, study="quick <1>")
    assert soup.header.find("a")["href"] == "../index.html"
    assert "quick <1>" in soup.header.text
    assert "04 WGAN & more" in soup.header.text
    assert soup.find(class_="banner") is None
    assert soup.find(class_="status").text.split() == ["✓", "done"]


def test_a_failed_notebook_shows_its_message(render):
    nb = notebook()
    nb.cells.append(
        cell("1/0", new_output("error", ename="E", evalue="v", traceback=["\x1b[31mZeroDivisionError\x1b[0m <x>"]))
    )
    nb.cells.append(cell("later()", count=None))
    _, soup = render(nb, status="failed", message="cell 11: <boom>")
    assert "cell 11: <boom>" in soup.find(class_="banner").text
    assert soup.find("pre", class_="error").text.strip() == "ZeroDivisionError <x>"
    assert len(soup.find_all(class_="notrun")) == 1


def test_bad_files_are_one_sentence_and_leave_no_page(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        render_notebook(tmp_path / "no.ipynb", tmp_path / "no.html", title="t")
    (tmp_path / "bad.ipynb").write_text("{")
    with pytest.raises(BadInput, match="is not a notebook"):
        render_notebook(tmp_path / "bad.ipynb", tmp_path / "no.html", title="t")
    with pytest.raises(BadInput, match="Unknown status"):
        render_notebook(tmp_path / "bad.ipynb", tmp_path / "no.html", title="t", status="fine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.ipynb"]


def test_mathml_says_when_it_cannot():
    assert "<mfrac>" in mathml(r"\frac{1}{2}")
    assert "<mtable" in mathml(r"\begin{aligned} a &= b \\ c &= d \end{aligned}", display=True)
    shown = mathml(r"\nosuchthing{<x>}")
    assert shown.startswith('<code class="tex"')
    assert "&lt;x&gt;" in shown


def test_redrawn_bars_keep_their_last_state():
    parts = split_stream("start\n 10%|#  |\r 50%|## |\r100%|###|\nend\r\n")
    assert parts == {"log": "100%|###|", "text": "start\nend"}


def test_a_log_saved_in_many_pieces_is_one_fold(tmp_path):
    pieces = [new_output("stream", name="stderr", text=f"progress | WGAN | {i}/9\n") for i in range(9)]
    nbformat.write(new_notebook(cells=[cell("train()", *pieces)]), tmp_path / "x.ipynb")
    render_notebook(tmp_path / "x.ipynb", tmp_path / "x.html", title="x")
    page = (tmp_path / "x.html").read_text()
    assert page.count("Progress log") == 1
    assert "8/9" in page
