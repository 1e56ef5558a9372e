"""The report is one file whose script does, in a real browser and without a network, what the page says."""

import html.parser
import json
import re

import pytest
from typer.testing import CliRunner

from experiments.commands import app
from experiments.errors import StudyError
from experiments.grid.notes import Notes, write_notes
from experiments.pages.explorer import page_data, save_command
from experiments.pages.glossary import GLOSSARY
from experiments.pages.report import TEMPLATE, as_script, svg_uri, write_report
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
    assert all(address.startswith("data:image/svg+xml,") for address in reader.loaded)
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
    assert "<p>2 of 2 experts beat the pretrained model on their own task" in text
    assert "<li>caption + grounding (0.50 caption + 0.50 grounding, vanilla) keeps 91 [" in text
    assert "Not told apart: " in text
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
    with pytest.raises(StudyError, match=r"page\.html/x\.html cannot be written: File exists: name another file"):
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


def test_older_samples_and_those_of_any_study_are_read(tmp_path):
    older = {"is_film" if name == "is_video" else name: value for name, value in NOTHING.items()}
    plain = {"title": "crystal 3", "prompt": None, "text": "-1.2 eV", "image": None, "table": [["a", "b"]]}
    lines = [{"key": "k", "samples": [older, NOTHING]}, {"key": "m", "samples": [plain, {"title": "only this"}]}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_samples(tmp_path) == {"k": [NOTHING, NOTHING], "m": [plain, {"title": "only this"}]}


@pytest.mark.parametrize("wrong", [{"table": ["a"]}, {"table": [[1]]}, {"text": 1}, {"image": "a/b.png"}, {"x": 1}])
def test_what_is_no_sample_of_any_study_is_refused(tmp_path, wrong):
    (tmp_path / "samples.jsonl").write_text(json.dumps({"key": "k", "samples": [{"title": "t", **wrong}]}) + "\n")
    with pytest.raises(StudyError, match=r"samples\.jsonl:1: not the samples of a row: remove the line"):
        read_samples(tmp_path)


def test_a_missing_image_is_named(tmp_path):
    rows, _ = in_memory("interpolation", only="vqa+caption", points=3, kinds=("vanilla",))
    line = {"key": rows[0]["key"], "samples": [{**NOTHING, "image": "gone.png"}]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(StudyError, match=r"samples/gone\.png: a sample's image is missing"):
        page_data(tmp_path, "interpolation", rows)


def test_the_template_is_in_the_package():
    setup = (ROOT / "setup.cfg").read_text()
    assert TEMPLATE.parent.parent.name == "pages"
    packaged = setup.split("[options.package_data]")[1].split("[options.")[0]
    assert f"    pages/{TEMPLATE.parent.name}/*\n" in packaged


def point(method="interpolate", batchnorm="average", shares=None, **more):
    return {
        "shares": shares or {"a b": 0.7, "c": 0.3},
        "method": method,
        "batchnorm": batchnorm,
        "seed": 0,
        "experts": "expert",
    } | more


FILES = {"a b": {"0": ["/x/a b.pt", ""]}, "c": {"0": ["/x/c.pt", "auto"]}, "pretrained": {"0": ["/x/p.pt", ""]}}


@pytest.mark.parametrize(
    ("row", "command"),
    [
        (point(), "unival-merge interpolate '/x/a b.pt' /x/c.pt --ratio 0.3 -o merged.safetensors"),
        (
            point("ties", parameters={"density": 0.1}),
            "unival-merge merge ties '/x/a b.pt' /x/c.pt -p density=0.1 --base /x/p.pt -o merged.safetensors",
        ),
        (point("slerp"), "unival-merge merge slerp '/x/a b.pt' /x/c.pt -p ratio=0.3 -o merged.safetensors"),
        (
            point(batchnorm="from:c"),
            "unival-merge interpolate '/x/a b.pt' /x/c.pt --ratio 0.3 --name 'a b' --name c --batchnorm from:c "
            "-o merged.safetensors",
        ),
        (point(batchnorm="recalibrate:task"), ""),
        (point("ensemble"), ""),
        (point("single", shares={"c": 1.0}), ""),
    ],
    ids=["interpolate", "ties", "slerp", "from", "recalibrated", "ensemble", "single"],
)
def test_the_command_that_saves_a_model(row, command):
    found, about = save_command(row, ("a b", "c"), Notes(files=FILES))
    assert found == command
    assert bool(about) != bool(command)


def test_a_command_for_experts_that_lie_nobody_knows_where():
    found, about = save_command(point(), ("a b", "c"), Notes())
    assert found == "unival-merge interpolate 'a b.pt' c.pt --ratio 0.3 -o merged.safetensors"
    assert about == "The folder does not say where the experts lie: put their files in."


def test_an_expert_of_a_kind_lies_elsewhere_than_one_of_another():
    files = {"late/a b": {"0": ["/x/late.pt", ""]}, "late/c": {"0": ["/x/c.pt", ""]}, **FILES}
    assert "interpolate /x/late.pt /x/c.pt" in save_command(point(experts="late"), ("a b", "c"), Notes(files=files))[0]
    assert "interpolate '/x/a b.pt' /x/c.pt" in save_command(point(), ("a b", "c"), Notes(files=files))[0]


def test_a_section_is_named_by_its_expert():
    files = FILES | {"c": {"0": ["/x/c.pt", "ema", "module.="]}}
    found, _ = save_command(point(), ("a b", "c"), Notes(files=files))
    assert "--name 'a b' --name c --section c=ema --rename c:module.= -o merged.safetensors" in found


def test_figures_are_smaller_and_the_same_in_an_address():
    svg = '<svg>\n <!-- x -->\n <path d="M 12.345678 1.345678\nL 0.015625 -23.999999" style="fill: #ffffff"/></svg>'
    wanted = "data:image/svg+xml,%3Csvg%3E %3Cpath d=%22M 12.34 1.345678 L 0.015625 -23.99%22"
    assert svg_uri(svg).startswith(wanted)
    assert "%23ffffff" in svg_uri(svg)


def test_the_glossary_has_the_words_of_the_page(page):
    text = page.read_text(encoding="utf-8")
    for word in ("retention", "front", "barrier", "expert", "ID", "shifted", "Holm", "not told apart", "seed"):
        assert f"<dt>{word}</dt>" in text
    assert list(GLOSSARY) == sorted(GLOSSARY, key=str.lower)


@pytest.mark.skipif(browser.PROGRAM is None, reason="no chromium or google-chrome")
def test_a_study_of_other_metrics_in_a_browser(tmp_path):
    """An axis a unit with round numbers, samples of any kind, dark and narrow, and no complaint."""
    folder = write_study(tmp_path / "study", "interpolation", only="vqa+caption", points=3, kinds=("vanilla",))
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        if row["task"] == "caption":
            row.update(metric="loss", unit="nats", higher_is_better=False)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    middle = next(row for row in rows if row["shares"] == {"vqa": 0.5, "caption": 0.5} and row["split"] == "test")
    sample = {"title": "crystal", "text": "-1 eV", "table": [["x", "y"], ["1", "2"]]}
    (folder / "samples.jsonl").write_text(json.dumps({"key": middle["key"], "samples": [sample]}) + "\n")
    write_notes(folder, "interpolation", Notes(tasks={"vqa": "vqa", "caption": "caption"}, files=FILES))
    page = write_report(folder, "interpolation", tmp_path / "page.html")
    with browser.Browser(page.as_uri(), tmp_path / "profile") as tab:
        assert tab.value("document.querySelectorAll('.chart .cursor').length") == 2
        marks = tab.value(
            "[...document.querySelectorAll('.chart text[text-anchor=end]')].map(each => each.textContent)"
        )
        assert {"20", "40", "60", "80"} <= set(marks)
        assert "VQA accuracy (%)" in tab.value("document.querySelector('.chart').textContent")
        assert "loss (nats, lower is better)" in tab.value("document.querySelector('.chart').textContent")
        assert tab.value("document.querySelector('.sample').textContent") == "crystalsays: -1 eVxy12"
        assert "vqa.pt caption.pt --ratio 0.5" in tab.value("document.querySelector('#pairs pre').textContent")
        tab.send("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
        for scheme, ground in (("dark", "rgb(26, 26, 26)"), ("light", "rgb(255, 255, 255)")):
            tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            assert tab.value("getComputedStyle(document.body).backgroundColor") == ground
            assert tab.value("document.documentElement.scrollWidth") == 400
        assert tab.value("document.querySelectorAll('details[open]').length") < 3
        tab.value("window.dispatchEvent(new Event('beforeprint'))")
        assert tab.value("document.querySelectorAll('details:not([open])').length") == 0
        assert tab.errors == []


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

        tab.value("document.querySelector('#ratio').focus()")
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
        chosen = "document.querySelector('#series').selectedOptions[0].text"
        assert tab.value(chosen) == "ratatouille, BatchNorm average"
        tab.open(f"{page.as_uri()}?again#{link}")  # the same from a fresh start
        tab.wait(f"{words} === '0.75 caption + 0.25 grounding' && {chosen} === 'ratatouille, BatchNorm average'")

        tab.value(f"{table}.querySelector('a').click()")
        tab.wait("document.querySelector('#rows').open && location.hash.startsWith('#row-')")
        assert tab.value("document.querySelector(location.hash).cells[0].textContent.length") == 16
        assert tab.errors == []
        tab.value("setTimeout(() => { window.late = true; throw new Error('seen'); })")  # complaints would be found
        tab.wait("window.late === true")
        assert len(tab.errors) == 1
