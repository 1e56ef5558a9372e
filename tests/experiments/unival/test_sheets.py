"""Sheets of what was drawn: a line a point, a column a caption."""

import json

from PIL import Image

from experiments.unival.sheets import GAP, HEAD, LABEL, SIDE, drawn_sheet, write_sheet

STEP = SIDE + GAP
MIDDLE = SIDE // 2


class Setup:
    """Two rows, each with one code, which is the red of its image."""

    def table(self, task, split):
        assert (task, split) == ("image-generation", "test")
        return [{"codes": "200", "caption": "a red one"}, {"codes": "100", "caption": "a red two"}]

    def images(self, codes):
        return [plain(*own) for own in codes]


def plain(red):
    return Image.new("RGB", (24, 24), (red, 0, 0))


def reds(sheet, lines):
    """The red of the middle of every image, line by line."""
    places = [(LABEL + x * STEP + MIDDLE, HEAD + y * STEP + MIDDLE) for y in range(lines) for x in (0, 1)]
    return [sheet.getchannel("R").getpixel(place) for place in places]


def line(seed, share, *names, task="image-generation"):
    shares = {"caption": 1 - share, "image-generation": share}
    samples = [{"image": name} for name in names]
    return json.dumps({"key": "k", "seed": seed, "shares": shares, "task": task, "split": "test", "samples": samples})


def test_images_stand_below_their_captions():
    sheet = drawn_sheet(["a red one", "a red two"], [("half", [plain(10), plain(20)]), ("all", [plain(30), plain(40)])])
    assert sheet.size == (LABEL + 2 * STEP, HEAD + 2 * STEP)
    assert reds(sheet, 2) == [10, 20, 30, 40]


def test_a_sheet_has_the_points_of_the_first_seed_in_the_order_of_their_shares(tmp_path):
    (tmp_path / "samples").mkdir()
    for red in (40, 60, 80):
        plain(red).save(tmp_path / "samples" / f"{red}.png")
    lines = [
        line(0, 1.0, "40.png", "60.png"),
        line(0, 0.0, "80.png", "40.png"),
        line(1, 0.5, "60.png", "60.png"),
        line(0, 1.0, "60.png", "60.png", task="caption"),
    ]
    (tmp_path / "samples.jsonl").write_text("".join(f"{one}\n" for one in lines))
    assert write_sheet(tmp_path, Setup(), 2) == tmp_path / "drawn.png"
    with Image.open(tmp_path / "drawn.png") as image:
        sheet = image.convert("RGB")
    assert sheet.height == HEAD + 3 * STEP
    assert all(abs(a - b) <= 8 for a, b in zip(reds(sheet, 3), [200, 100, 80, 40, 40, 60], strict=True))


def test_without_drawings_there_is_no_sheet(tmp_path):
    (tmp_path / "samples.jsonl").write_text(line(0, 1.0, task="caption") + "\n")
    assert write_sheet(tmp_path, Setup(), 2) is None
    assert not (tmp_path / "drawn.png").exists()
