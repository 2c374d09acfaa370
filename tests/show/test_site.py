import itertools
import json

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from stda import BadInput
from stda.show import build_index
from stda.show.site import summary

COMPARED = {"baseline": "balanced", "metric": "balanced_accuracy"}
HELPS = {"verdict": "helps", "p_holm": 0.004, "reason": "<above>", "replicates": 3}
VERDICTS = [
    {"arm": "nst", "difference": 0.03, "low": 0.01, "high": 0.05, **COMPARED, **HELPS},
    {"arm": "wgan", "difference": -0.01, "low": -0.04, "high": 0.02, **COMPARED, "verdict": "undecided"},
]
JOBS = [
    {"stage": "data", "title": "01 Data", "replicate": 0, "arm": "", "status": "done", "seconds": 90.0,
     "html": "r0/01 data#1.html", "headline": "1,500 images", "error": ""},
    {"stage": "wgan", "title": "04 <WGAN>", "replicate": 0, "arm": "", "status": "failed", "seconds": 30,
     "html": "", "headline": "", "error": "the kernel <died>"},
    {"stage": "results", "title": "08 Results", "replicate": None, "arm": "", "status": "waiting", "seconds": None,
     "html": "", "headline": "", "error": ""},
]  # fmt: skip


def metrics():
    rows = itertools.product(
        [0, 1], [("balanced", 0.6), ("nst", 0.63)], ["val", "test"], ["balanced_accuracy", "accuracy"]
    )
    return pd.DataFrame(
        [{"replicate": r, "arm": a, "split": s, "metric": m, "value": v + 0.02 * r} for r, (a, v), s, m in rows]
    )


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "reports" / "my study"
    folder.mkdir(parents=True)
    (folder / "verdict.json").write_text(json.dumps(VERDICTS))
    metrics().to_csv(folder / "metrics.csv", index=False)
    intervals = [{"arm": "nst", "metric": "balanced_accuracy", "mean": 0.64, "low": 0.6, "high": 0.68}]
    (folder / "arms.json").write_text(json.dumps(intervals))
    return tmp_path


def build(root, **changes):
    knobs = {
        "question": "Does <it> help?",
        "jobs": JOBS,
        "not_run": ["ratio 10: <too slow>"],
        "facts": {"smallest_effect": 0.02, "git_commit": "abc & def", "data_licence": "CC BY-NC 4.0"},
    }
    path = build_index("my study", root / "reports", root / "runs", **(knobs | changes))
    text = path.read_text(encoding="utf-8")
    return text, BeautifulSoup(text, "html.parser")


def test_the_index_says_everything(study):
    text, soup = build(study)
    assert soup.find(class_="question").text == "Does <it> help?"
    verdicts = [cell.text.split() for cell in soup.find_all("td", class_="verdict")]
    assert verdicts == [["▲", "helps"], ["○", "undecided"]]
    rows = soup.find_all("table")[0].tbody.find_all("tr")
    assert "<above>" in rows[0].text
    assert "+0.010 to +0.050" in rows[0].text
    assert "−0.010" in rows[1].text
    assert "ratio 10: <too slow>" in text.replace("&lt;", "<").replace("&gt;", ">")
    assert "abc & def" in soup.dl.text
    assert "Data: CC BY-NC 4.0" in soup.text
    assert "../../runs/my study" in soup.text
    assert str(study) not in text


def test_no_network_and_alt_text_with_the_numbers(study):
    text, soup = build(study)
    assert "http" not in text
    assert soup.find_all("script") == []
    assert all(image["src"].startswith("data:image/png;base64,") for image in soup.find_all("img"))
    effects, arms = (image["alt"] for image in soup.find_all("img"))
    assert "nst +0.030 (+0.010 to +0.050), helps" in effects
    assert "nst 0.640; balanced 0.610" in arms


def test_arms_show_mean_interval_and_replicates(study):
    _, soup = build(study)
    rows = soup.find_all("table")[1].tbody.find_all("tr")
    assert [row.td.text.split() for row in rows] == [["nst"], ["balanced", "baseline"]]
    cell = rows[0].find_all("td")[1]
    assert list(cell.stripped_strings) == ["0.640", "0.600 to 0.680", "0.63 · 0.65"]


def test_jobs_link_to_their_notebooks(study):
    _, soup = build(study)
    rows = soup.find_all("table")[2].tbody.find_all("tr")
    assert rows[0].a["href"] == "r0/01%20data%231.html"
    assert rows[0].find_all("td")[4].text == "1.5"
    assert rows[1].a is None
    assert "the kernel <died>" in rows[1].text
    assert rows[2].find_all("td")[1].text == "–"
    assert summary(JOBS) == "1 of 3 notebooks done, 1 failed, 1 waiting; 2 min 00 s of work"


def test_an_unfinished_study_has_a_page_too(tmp_path):
    text, soup = build(tmp_path, not_run=[], facts={})
    assert "There is no verdict yet" in text
    assert "There are no test scores yet" in text
    assert "Nothing of the study was left out" in text
    assert soup.find_all("img") == []


def test_a_verdict_without_numbers_is_still_listed(study):
    empty = {
        "arm": "wgan",
        "baseline": "",
        "metric": "balanced_accuracy",
        "difference": None,
        "low": None,
        "high": None,
    }
    (study / "reports" / "my study" / "verdict.json").write_text(json.dumps([{**empty, "verdict": "undecided"}]))
    _, soup = build(study)
    assert "undecided" in soup.find("td", class_="verdict").text
    assert len(soup.find_all("img")) == 1


@pytest.mark.parametrize(
    ("name", "content"), [("verdict.json", "{"), ("arms.json", "{}"), ("metrics.csv", "a,b\n1,2\n")]
)
def test_broken_files_are_one_sentence_and_keep_the_old_page(study, name, content):
    before, _ = build(study)
    folder = study / "reports" / "my study"
    (folder / name).write_text(content)
    with pytest.raises(BadInput, match="run notebook 08 again"):
        build(study)
    assert (folder / "index.html").read_text(encoding="utf-8") == before
    assert [p.name for p in folder.iterdir() if p.name.endswith(".tmp")] == []


def test_unknown_status_is_refused(study):
    with pytest.raises(BadInput, match="Unknown status 'fine'"):
        build(study, jobs=[{**JOBS[0], "status": "fine"}])
