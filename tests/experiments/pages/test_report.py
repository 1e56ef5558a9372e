"""The report is one file whose script does, in a real browser and without a network, what the page says."""

import html.parser
import json
import re

import pytest
from typer.testing import CliRunner

from experiments.commands import app
from experiments.errors import StudyError
from experiments.pages.report import TEMPLATE, as_script, page_data, write_report
from experiments.pages.views import read_samples
from tests import ROOT
from tests.experiments import browser
from tests.experiments.study_rows import in_memory, write_study

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
NASTY = "</script><script>document.title = 'taken'</script><!-- & \u2028"


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of one pair of five points under two policies; the middle has samples."""
    import base64

    folder = tmp_path_factory.mktemp("report") / "study"
    policies = ("average", "recalibrate:mixture")
    write_study(
        folder,
        "interpolation",
        only="caption+grounding",
        points=5,
        kinds=("vanilla", "ratatouille"),
        batchnorm=policies,
        tasks=("caption", "grounding"),
    )
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    (folder / "samples").mkdir()
    (folder / "samples" / "dot.png").write_bytes(base64.b64decode(PIXEL))
    sample = {"name": "one", "prompt": NASTY, "is_video": False, "image": "dot.png"}
    words = {"answer": "a red three", "reference": "a three", "box": None, "reference_box": None}
    boxes = {"answer": "", "reference": "", "box": [0.25, 0.25, 0.5, 1], "reference_box": [0.25, 0.25, 0.5, 0.75]}
    with (folder / "samples.jsonl").open("w") as file:
        for row in rows:
            is_middle = row["shares"] == {"caption": 0.5, "grounding": 0.5} and row["experts"] == "vanilla"
            place = (row["split"], row["batchnorm"], row["method"])
            if is_middle and place == ("test", "average", "interpolate") and row["task"] in row["shares"]:
                own = sample | (boxes if row["task"] == "grounding" else words)
                file.write(json.dumps({"key": row["key"], "samples": [own]}) + "\n")
        file.write(json.dumps({"key": "of other weights", "samples": [sample | words]}) + "\n")
    output = folder.parent / "report.html"
    run = CliRunner().invoke(app, ["study", "report", "interpolation", str(folder), "-o", str(output)])
    assert run.exit_code == 0, run.output
    return output


class Outside(html.parser.HTMLParser):
    """Collects every address that a page would load, and the ids that it has and points to."""

    def __init__(self):
        super().__init__()
        self.loaded, self.ids, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.loaded += [found[name] for name in ("src", "srcset", "data", "poster") if name in found]
        self.loaded += [found["href"]] if tag in ("link", "image", "use") else []
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []


def test_the_page_needs_nothing_outside(page):
    reader = Outside()
    reader.feed(page.read_text(encoding="utf-8"))
    assert len(reader.loaded) == 6  # retention, curves, plane, policies, and two tasks out of distribution
    assert all(address.startswith("data:image/svg+xml;base64,") for address in reader.loaded)
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.links
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.ids)


def test_the_data_are_those_of_the_rows(page):
    data = data_of(page.read_text(encoding="utf-8"))
    (pair,) = data["pairs"]
    assert (pair["first"], pair["second"], pair["tasks"]) == ("caption", "grounding", ["caption", "grounding"])
    names = [f"{kind}, BatchNorm {name}" for kind in ("vanilla",) for name in ("average", "recalibrate:mixture")]
    assert [series["name"] for series in pair["series"]][:3] == [*names, "vanilla, ensemble"]
    for series in pair["series"]:
        assert [point["share"] for point in series["points"]] == [0, 0.25, 0.5, 0.75, 1]
    middle = pair["series"][0]["points"][2]
    assert middle["label"] == "0.50 caption + 0.50 grounding"
    cell = next(cell for cell in middle["cells"] if (cell["task"], cell["split"]) == ("grounding", "test"))
    assert (cell["value"], cell["n"], len(cell["keys"])) == (0.775, 400, 1)
    assert len(data["samples"]) == 2
    assert "of other weights" not in data["samples"]


def test_text_cannot_leave_the_script_element(page):
    text = page.read_text(encoding="utf-8")
    assert NASTY not in text
    assert text.count("</script") == 2
    samples = data_of(text)["samples"].values()
    assert {one["prompt"] for several in samples for one in several} == {NASTY}
    assert json.loads(as_script({"a": NASTY})) == {"a": NASTY}


def test_findings_tables_and_the_command_are_there(page):
    text = page.read_text(encoding="utf-8")
    assert "What do the weights between two experts know of both tasks? (arXiv 2307.16184, figures 2 and 6)" in text
    assert "<p>The experts are in tension: 2 of 2 beat the pretrained model" in text
    assert "<li>caption and grounding, vanilla: 0.50 caption + 0.50 grounding (chosen on test" in text
    assert f"unival-merge study report interpolation {page.parent / 'study'} -o {page}" in text
    assert re.search(r'<td class="number"><a href="#row-\w{16}">77\.5 \[73\.5, 81\.5\]</a></td>', text)


def test_without_samples_the_page_says_how_to_make_them(tmp_path):
    rows, _ = in_memory("interpolation", only="vqa+caption", points=3, kinds=("vanilla",))
    data = page_data(tmp_path, "interpolation", rows)
    assert data["samples"] == {}
    assert data["make_samples"] == f"Make them with unival-merge study samples interpolation {tmp_path}"


def test_a_study_without_pairs_has_no_sliders(tmp_path):
    write_study(tmp_path, "ood", only="vqa", kinds=("vanilla",), split="val")
    (tmp_path / "study.json").unlink()  # rows alone make a page, too
    text = write_report(tmp_path, "ood", tmp_path / "page.html").read_text(encoding="utf-8")
    assert data_of(text)["pairs"] == []
    assert 'id="explorer" hidden>' in text
    assert "{{" not in text
    with pytest.raises(StudyError, match=r"page\.html/x\.html: File exists: name another file"):
        write_report(tmp_path, "ood", tmp_path / "page.html" / "x.html")


NOTHING = dict.fromkeys(("name", "prompt", "answer", "reference"), "") | {
    **dict.fromkeys(("box", "reference_box", "image")),
    "is_video": False,
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"image": "../../secret.png"},
        {"image": "/etc/passwd"},
        {"image": 3},
        {"box": [0, 0, 1]},
        {"box": [0, 0, 1, "1"]},
        {"box": [0, 0, 1, 1e400]},
        {"prompt": None},
        {"is_video": "no"},
        {"more": 1},
    ],
    ids=str,
)
def test_what_is_no_sample_is_refused(tmp_path, wrong):
    line = json.dumps({"key": "k", "samples": [{**NOTHING, **wrong}]})
    (tmp_path / "samples.jsonl").write_text(line.replace("Infinity", "1e400") + "\n")
    with pytest.raises(StudyError, match=r"samples\.jsonl:1: not the samples of a row: remove the line"):
        read_samples(tmp_path)


def test_a_missing_picture_is_named(tmp_path):
    rows, _ = in_memory("interpolation", only="vqa+caption", points=3, kinds=("vanilla",))
    line = {"key": rows[0]["key"], "samples": [{**NOTHING, "image": "gone.png"}]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(StudyError, match=r"samples/gone\.png: a sample's image is missing"):
        page_data(tmp_path, "interpolation", rows)


def test_the_template_is_in_the_package():
    setup = (ROOT / "setup.cfg").read_text()
    assert TEMPLATE.parent.parent.name == "pages"
    assert (
        f"    pages/{TEMPLATE.parent.name}/*.html\n" in setup.split("[options.package_data]")[1].split("[options.")[0]
    )


@pytest.mark.skipif(browser.PROGRAM is None, reason="no chromium or google-chrome")
def test_in_a_browser(page, tmp_path):
    words, table = "document.querySelector('output').textContent", "document.querySelector('.side table')"
    with browser.Browser(page.as_uri(), tmp_path / "profile") as tab:
        assert tab.value("document.title") == "Study: interpolation"
        assert tab.value(words) == "0.50 caption + 0.50 grounding"
        assert "77.5 [73.5, 81.5]" in tab.value(f"{table}.textContent")
        assert tab.value("document.querySelectorAll('.sample').length") == 2
        assert tab.value("document.querySelector('.sample').textContent").startswith(NASTY)
        assert tab.value("document.querySelector('.sample img').naturalWidth") == 1
        assert tab.value("[...document.querySelectorAll('.box')].map(each => each.style.height)") == ["50%", "75%"]

        tab.value("document.querySelector('input').focus()")
        tab.press("ArrowRight", 39)
        tab.wait(f"{words} === '0.25 caption + 0.75 grounding'")
        assert tab.value("document.querySelector('input').getAttribute('aria-valuetext')") == tab.value(words)
        assert "No sample answers of this point. Make them with unival-merge" in tab.value("document.body.textContent")
        assert tab.value("location.hash").endswith("ratio=0.75")
        tab.press("Home", 36)
        tab.wait(f"{words} === '1.00 caption'")
        assert "85.0 [81.0, 89.0]" in tab.value(f"{table}.rows[1].textContent")

        link = "pair=caption%2Fgrounding&series=ratatouille%2C+BatchNorm+average&ratio=0.3"
        tab.value(f"location.hash = '{link}'")
        tab.wait(f"{words} === '0.75 caption + 0.25 grounding'")
        chosen = "document.querySelector('select').selectedOptions[0].text"
        assert tab.value(chosen) == "ratatouille, BatchNorm average"
        tab.open(f"{page.as_uri()}?again#{link}")  # the same from a fresh start
        tab.wait(f"{words} === '0.75 caption + 0.25 grounding' && {chosen} === 'ratatouille, BatchNorm average'")

        tab.value(f"{table}.querySelector('a').click()")
        tab.wait("document.querySelector('details').open && location.hash.startsWith('#row-')")
        assert tab.value("document.querySelector(location.hash).cells[0].textContent.length") == 16
        assert tab.errors == []
        tab.value("setTimeout(() => { window.late = true; throw new Error('seen'); })")  # complaints would be found
        tab.wait("window.late === true")
        assert len(tab.errors) == 1
