import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import classification_report

from stda import BadInput
from stda.measure import claims
from stda.measure.claims import parse, read

MARKDOWN = """
We trained it on 17,732 images: see below. Precision, recall and F1, as usual.

| layer | parameters |
|---|---|
| conv1 | 1,728 |

## Ours
- **Accuracy**: 39 %
- n: 7,599

| **Class** | Precision | Sensitivity | F1-score | # images |
|:--|--:|--:|--:|--:|
| MEL | .22 | 7 % | 0,11 | 1,357 |
| *NV* | .34 | 77 % | .47 | 3 863 |
| macro avg | .28 | 42 % | .29 | |

Thanks to everybody.
"""


def numbers(table):
    return {
        row.name: {name: printed.text for name, printed in row.rates.items()} | {"support": row.support}
        for row in table.rows
    }


def test_markdown_amid_prose_and_another_table():
    (table,) = parse(MARKDOWN).tables
    assert table.name == "Ours"
    assert numbers(table) == {
        "MEL": {"precision": ".22", "recall": "7 %", "f1": "0,11", "support": (1357, 1357)},
        "NV": {"precision": ".34", "recall": "77 %", "f1": ".47", "support": (3863, 3863)},
    }
    assert table.facts["accuracy"].text == "39 %"
    assert table.counts == {"n": (7599, 7599)}
    assert table.averages["macro"]["recall"].text == "42 %"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_with_any_separator(mark):
    lines = [["class", "precision", "recall", "support"], ["a", "0.5", "0.25", "8"], ["b c", "", "1.00", "12"]]
    (table,) = parse("\n".join(mark.join(cells) for cells in lines)).tables
    assert numbers(table) == {
        "a": {"precision": "0.5", "recall": "0.25", "support": (8, 8)},
        "b c": {"recall": "1.00", "support": (12, 12)},
    }


def test_decimal_commas_in_quotes_or_between_semicolons():
    for text in ('class,precision,recall\na,"0,5","0,25"\n', "class;precision;recall\na;0,5;0,25\n"):
        row = parse(text).tables[0].rows[0]
        assert [float(row.rates[name].low) for name in ("precision", "recall")] == [0.45, 0.245]


def test_latex_with_rules_and_emphasis():
    text = r"""\begin{tabular}{lrr}
\toprule
\textbf{Class} & Precision & Recall (\%) & F1 \\ \midrule
MEL & $0.22$ & 7 & \textbf{0.11} \\
\hline
NV & 0.34 & 77\% & -- \\ \bottomrule
\end{tabular}"""
    assert numbers(parse(text).tables[0]) == {
        "MEL": {"precision": "0.22", "recall": "7", "f1": "0.11", "support": None},
        "NV": {"precision": "0.34", "recall": "77%", "support": None},
    }


@pytest.mark.parametrize("output", ["text", "csv", "markdown"])
def test_scikit_learn_s_report_in_every_form(output):
    import pandas as pd

    rng = np.random.default_rng(0)
    true, answer = rng.integers(0, 3, 90), rng.integers(0, 3, 90)
    names = ["grade 2", "mole", "3"]
    report = classification_report(true, answer, target_names=names, output_dict=output != "text", digits=3)
    if output != "text":
        frame = pd.DataFrame(report).T
        text = frame.to_csv() if output == "csv" else "| |" + "|".join(frame.columns) + "|\n|--|--|--|--|--|\n"
        text += (
            ""
            if output == "csv"
            else "\n".join(f"|{name}|" + "|".join(str(value) for value in row) + "|" for name, row in frame.iterrows())
        )
    else:
        text = f"Scores of the last epoch\n\n{report}"
    (table,) = parse(text).tables
    assert [row.name for row in table.rows] == names
    assert [row.support[0] for row in table.rows] == np.bincount(true).tolist()
    assert table.counts["n"] == (90, 90)
    accuracy = (true == answer).mean()
    assert table.facts["accuracy"].low <= accuracy <= table.facts["accuracy"].high
    assert table.averages.keys() == {"macro", "weighted"}
    assert claims.passed(claims.audit(parse(text)))


def test_a_report_of_some_classes_is_not_taken_for_all():
    rng = np.random.default_rng(1)
    true, answer = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    table = parse(classification_report(true, answer, labels=[0, 1])).tables[0]
    assert "micro" in table.averages
    assert table.multi_label
    assert claims.passed(claims.audit(parse(classification_report(true, answer, labels=[0, 1]))))


def test_percent_is_told_by_sign_header_line_or_size():
    for text in (
        "class,recall\na,34 %\nb,0.5 %\n",
        "class,recall [%]\na,34\nb,0.5\n",
        "units: percent\nclass,recall\na,34\nb,0.5\n",
        "class,recall\na,34\nb,0.5\n",
    ):
        low = [float(row.rates["recall"].low) for row in parse(text).tables[0].rows]
        assert low == pytest.approx([0.335, 0.0045])


@pytest.mark.parametrize(
    "text",
    [
        'accuracy,0.39\nn,"7,599"\nclass,recall\na,.3\nb,.4\n'.replace('"', ""),
        "| metric | value |\n|---|---|\n| accuracy | 0.39 |\n| n | 7,599 |\n\n|class|recall|\n|--|--|\n|a|.3|\n|b|.4|",
        "class;recall\na;.3\nb;.4\naccuracy;0.39\nn;7 599\n",
        "n = 7599\n* accuracy: 0.39\n\nclass\trecall\na\t.3\nb\t.4\n",
    ],
)
def test_facts_may_stand_in_cells_or_lines(text):
    (table,) = parse(text).tables
    assert table.facts["accuracy"].text == "0.39"
    assert table.counts["n"] == (7599, 7599)
    assert [row.name for row in table.rows] == ["a", "b"]


def test_classes_may_be_called_like_counts():
    (table,) = parse("class,precision,recall\nk,.5,.3\nn,.5,.4\n").tables
    assert [row.name for row in table.rows] == ["k", "n"]


def test_facts_above_all_headings_hold_for_all_tables_and_models_are_tables_of_facts():
    text = """
n: 182
# one
accuracy: .5
# two
n: 90
| model | accuracy | specificity |
|---|---|---|
| A | 50 | 70.5 |
| B | 60 | |
"""
    tables = parse(text).tables
    assert [table.name for table in tables] == ["one", "two: A", "two: B"]
    assert [table.n for table in tables] == [(182, 182), (90, 90), (90, 90)]
    assert [sorted(table.facts) for table in tables] == [["accuracy"], ["accuracy", "specificity"], ["accuracy"]]


def test_a_second_table_without_a_heading_is_a_table_of_its_own():
    tables = parse("class,recall\na,.1\nb,.2\n\nclass,recall\na,.3\nb,.4\n", name="paste").tables
    assert [table.name for table in tables] == ["paste, table 1", "paste, table 2"]


def test_a_prior_is_a_whole_number_of_the_test_images():
    table = parse("n: 7599\nclass,prior\nNV,12875/25331\nMEL,.1785\n").tables[0]
    assert [table.support(row) for row in table.rows] == [(3862, 3863), (1356, 1357)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class,precison\na,.3\n", "The column 'precison' is not known; did you mean 'precision'? Rename it."),
        ("clas,precision\na,.3\n", "The first column 'clas'"),
        ("lesion,precision\na,.3\n", "must be 'class'"),
        ("class,recall\na,1.3\nb,.2\n", "has numbers above 1 among numbers below"),
        ("class,recall\na,34\nb,.2\nc,.1", "'units: percent'"),
        ("class,precision,recall\na,34,.2\nb,70,.5\n", "Column 'recall' is at most 1 while 'precision' is in percent"),
        ("class,recall\na,.3\na,.4\n", "Line 3 (a): the class occurs twice"),
        ("class,recall,sensitivity\na,.3,.4\n", "'recall' twice"),
        ("class,recall\na,130\n", "Line 2 (a): recall is 130, more than 100 %"),
        ("class,recall\na,.34 ± .02\n", "averages over several runs"),
        ("class,recall,support\na,.3,2.5\n", "Line 2 (a): support is '2.5', which is no whole number"),
        ("class,precision,recall\nMEL,0,34,0,22\n", "Line 2 has 5 cells, its table's header 3"),
        ("acuracy: 39 %\n", "Line 1: 'acuracy' is not known; did you mean 'accuracy'?"),
        ("averaging: harmonic\naccuracy: .3\n", "must be macro, weighted, micro or binary"),
        ("labels: none\naccuracy: .3\n", "must be single or multi"),
        ("n: 3.5\naccuracy: .3\n", "Line 1: n is '3.5', which is no whole number"),
        ("class,recall,support\na,.3,10\naccuracy,.3,11\ntotal,,12\n", "12 test images, but elsewhere 11"),
        ("Nothing to see.\n", "nothing to audit was found"),
        ("We report precision, recall,\nand F1, as others do.\n", "nothing to audit was found"),
        ("| | runs |\n|---|---|\n| data | 3 |\n", "nothing to audit was found"),
        ("", "nothing to audit was found"),
    ],
)
def test_a_mistake_is_one_sentence_with_line_and_remedy(text, said):
    with pytest.raises(BadInput) as error:
        parse(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_no_text(tmp_path):
    with pytest.raises(BadInput, match="There is no file"):
        read(tmp_path / "none.csv")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(BadInput, match="cannot be read as text"):
        read(tmp_path / "picture.png")
    with pytest.raises(BadInput, match="cannot be read as text"):
        read(tmp_path)
    (tmp_path / "bad.csv").write_text("class,recal\na,.3\n")
    with pytest.raises(BadInput, match=r"bad\.csv: The column 'recal'"):
        read(tmp_path / "bad.csv")


def test_before_and_after_may_be_two_files(tmp_path):
    for name, accuracy in (("before", ".5"), ("after", ".6")):
        (tmp_path / f"{name}.csv").write_text(f"n: 100\naccuracy: {accuracy}\n")
    both = read([tmp_path / "before.csv", tmp_path / "after.csv"])
    assert [table.name for table in both.tables] == ["before", "after"]
    assert "before → after" in set(claims.audit(both)["table"])


def test_unknown_lines_and_columns_are_listed_as_not_used():
    found = claims.audit(parse("epochs: 90\n# t\nbatch: 64\nclass,recall,AUC\na,.3,.9\nb,.2,.8\n"))
    (row,) = found[found["statement"].str.contains("no check uses")].itertuples()
    assert row.finding == "cannot be checked"
    assert row.arithmetic == "batch: 64; column AUC"


def facts_of(text):
    table = parse(text).tables[0]
    return table, {name: printed.text for name, printed in table.facts.items()}


@pytest.mark.parametrize("name", ["Overall", "**All**", "Total"])
def test_the_accuracy_in_a_row_about_the_whole_is_held_against_the_recalls(name):
    text = f"|class|recall|accuracy|n|\n|---|---|---|---|\n|a|.65| |100|\n|b|.93| |600|\n|{name}| |.70|700|\n"
    assert facts_of(text)[1] == {"accuracy": ".70"}
    assert "0.886 to 0.894" in " ".join(claims.audit(parse(text)).query("finding == 'inconsistent'").arithmetic)


def test_an_average_of_class_accuracies_is_listed_as_not_used():
    table, facts = facts_of("class,accuracy,n\na,.65,100\nb,.93,600\noverall,.89,700\n")
    assert facts == {}
    assert any(".89" in words for words in table.unused)


def test_abbreviated_headers_and_old_latex_emphasis_are_read():
    (table,) = parse("|class|Sens. (%)|Spec. (%)|\n|---|---|---|\n|a|82.5|91.3|\n").tables
    assert {name: rate.text for name, rate in table.rows[0].rates.items()} == {"recall": "82.5", "specificity": "91.3"}
    text = r"""
    Class & Precision & Recall & Support \\ \hline
    {\bf a b} & {\bf .91} & \underline{.93} & 600 \\
    c & .50 & .45 & 100 \\
    \multicolumn{3}{l}{Accuracy} & .86 \\
    """
    table, facts = facts_of(text)
    assert [(row.name, row.rates["precision"].text, row.rates["recall"].text) for row in table.rows] == [
        ("a b", ".91", ".93"),
        ("c", ".50", ".45"),
    ]
    assert facts == {"accuracy": ".86"}
    assert table.n == (700, 700)


def test_a_report_written_with_decimal_commas_is_read_and_passes():
    rng = np.random.default_rng(3)
    truth = rng.choice(3, 400, p=[0.6, 0.3, 0.1])
    answer = np.where(rng.random(400) < 0.7, truth, rng.choice(3, 400))
    report = classification_report(truth, answer, output_dict=True, target_names=["a", "b c", "grade 2"])
    table = parse(pd.DataFrame(report).T.round(3).to_csv(sep=";", decimal=",")).tables[0]
    assert [row.support[0] for row in table.rows] == np.bincount(truth).tolist()
    assert table.n == (400, 400)
    assert claims.passed(claims.audit(claims.Claims([table])))


def test_weighted_averages_of_several_labels_per_image_are_checked_and_right():
    rng = np.random.default_rng(4)
    for trial in range(20):
        truth = rng.random((80, 3)) < 0.4
        answer = np.where(rng.random(truth.shape) < 0.8, truth, ~truth)
        text = classification_report(truth, answer, zero_division=0, digits=2 + trial % 2)
        found = claims.audit(parse(text))
        assert claims.passed(found), text
        weighted = found[found["statement"].str.startswith("weighted")]
        assert weighted["finding"].tolist() == ["consistent"] * 3
        assert not claims.passed(claims.audit(parse(re.sub(r"(weighted avg +)\S+", r"\g<1>0.01", text))))
