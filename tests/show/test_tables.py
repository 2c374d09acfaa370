import numpy as np
import pandas as pd
from bs4 import BeautifulSoup

from stda.show import table
from stda.show.tables import cell_text, formatted, html_table, plain_table

FRAME = pd.DataFrame({"arm": ["<nst>", None], "value": [0.12345, np.nan], "n": [3, -12], "good": [True, False]})


def test_table_is_escaped_captioned_and_right_aligned(monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: seen.append(data))
    table(FRAME, caption="Arms & <values>")
    soup = BeautifulSoup(seen[0]["text/html"], "html.parser")
    assert soup.caption.text == "Arms & <values>"
    rows = [[cell.text for cell in row.find_all("td")] for row in soup.tbody.find_all("tr")]
    assert rows == [["<nst>", "0.123", "3", "yes"], ["–", "–", "−12", "no"]]
    sides = ["right" in cell["style"] for cell in soup.thead.find_all("th")]
    assert sides == [False, True, True, False]
    assert seen[0]["text/plain"].splitlines() == [
        "Arms & <values>",
        "arm    value    n  good",
        "<nst>  0.123    3  yes",
        "–          –  −12  no",
    ]


def test_table_is_the_same_every_time():
    cells, numeric = formatted(FRAME, index=True)
    again = formatted(FRAME.copy(), index=True)
    assert html_table(cells, numeric, "c") == html_table(*again, "c")
    assert plain_table(cells, numeric, "c") == plain_table(*again, "c")
    assert list(cells) == ["index", "arm", "value", "n", "good"]


def test_digits_by_column_and_repeated_names():
    cells, _ = formatted(pd.DataFrame([[1.0, 2.0, 3.0]], columns=["a", "b", "b"]), digits={"a": 1})
    assert cells == {"a": ["1.0"], "b": ["2.000"], "b (2)": ["3.000"]}


def test_numbers_never_lie_about_being_zero():
    assert cell_text(3.2e-5) == "3.2e−05"
    assert cell_text(-1e-17) == "0.000"
    assert cell_text(np.float32(-0.5), 1) == "−0.5"
    assert cell_text(float("inf")) == "∞"
    assert cell_text(pd.NA) == "–"


def test_an_empty_frame_still_has_its_head():
    cells, numeric = formatted(FRAME.iloc[:0])
    assert "<th" in html_table(cells, numeric, "none")
    assert plain_table(cells, numeric, "none").splitlines()[0] == "none"
