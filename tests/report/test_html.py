"""The page: self-contained, complete, and boxes drawn where a plain projection puts them."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_summary import make_summary
from PIL import Image

from altermoma.frames import Boxes, Calibration, Frame
from altermoma.report.html import headline, latency_bars, render, write_report
from altermoma.report.paper import paper_table
from altermoma.report.scenes import draw_scene, project_boxes

REPO = Path(__file__).parents[2]
VOID = {"meta", "image", "path", "circle", "polygon", "input", "br", "link", "img"}


def make_frame() -> Frame:
    """One camera that looks along +y of the LiDAR frame, 100 x 60 pixels, focal length 50."""
    camera_from_lidar = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], np.float64)
    calibration = Calibration(
        camera_names=("CAM_FRONT", "CAM_FRONT_LEFT"),
        intrinsics_v33=np.stack([np.array([[50.0, 0, 50], [0, 50, 30], [0, 0, 1]])] * 2),
        camera_from_lidar_v44=np.stack([camera_from_lidar, camera_from_lidar]),
        image_hw=(60, 100),
    )
    rng = np.random.default_rng(0)
    points = rng.uniform(-20, 20, (500, 5)).astype(np.float32)
    return Frame(
        token="0123456789abcdef",
        scene="scene-0103",
        images_vhw3=rng.integers(0, 255, (2, 60, 100, 3), np.uint8),
        points_p5=points,
        calibration=calibration,
        ego_from_lidar_44=np.eye(4),
        global_from_ego_44=np.eye(4),
    )


def box(x: float, y: float, score: float = 1.0, label: int = 0) -> Boxes:
    geometry = np.array([[x, y, 0, 4, 2, 1.5, np.pi / 2, 0, 0]], np.float32)
    return Boxes(geometry_m9=geometry, labels_m=np.array([label], np.int64), scores_m=np.array([score], np.float32))


class Tags(HTMLParser):
    """Collects attributes and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page() -> str:
    scene = draw_scene(make_frame(), {"truth": box(0, 10), "dense": box(0, 10.2, 0.8), "pruned": box(1, 10, 0.7)}, 32.0)
    return render(make_summary(), scene)


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    loads = [value for tag, name, value in tags.attributes if name in {"src", "href", "srcset", "action", "data"}]
    assert loads
    assert all(value.startswith("data:image/") for value in loads)
    assert not {tag for tag, _, _ in tags.attributes} & {"script", "link", "iframe"}
    assert "<script" not in page
    assert not re.search(r"https?://|@import|url\(", page)


def test_the_page_is_well_formed(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []


def test_every_variant_stage_and_note_is_on_the_page(page: str) -> None:
    summary = make_summary()
    for variant in summary.variants.values():
        assert variant.title in page
    for part in ("images", "voxels", "tables", "camera", "view", "lidar", "fusion", "head", "decode"):
        assert f"<th>{part}</th>" in page
    assert summary.engines.line in page
    assert summary.engines.command in page
    assert "half &amp; half" in page
    assert "another model on another device" in page


def test_pictures_are_readable_images(page: str) -> None:
    found = re.findall(r"data:image/(jpeg|png);base64,([A-Za-z0-9+/=]+)", page)
    sizes = [(kind, Image.open(io.BytesIO(base64.b64decode(data))).size) for kind, data in found]
    assert sizes == [("jpeg", (100, 60)), ("jpeg", (100, 60)), ("png", (900, 900))]


def test_a_page_without_a_frame_and_without_latencies() -> None:
    summary = make_summary()
    untimed = {name: dataclasses.replace(v, latency_ms=None) for name, v in summary.variants.items()}
    text = render(dataclasses.replace(summary, variants=untimed), None)
    assert "One frame" not in text
    assert "Where the milliseconds go" not in text


def test_the_file_is_written_whole(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", make_summary(), None)
    assert (tmp_path / "report.html").read_text(encoding="utf-8").endswith("</html>\n")


def test_a_box_ahead_is_drawn_where_its_corners_project() -> None:
    frame = make_frame()
    (path,) = project_boxes(box(0, 10), frame.calibration, 0)
    drawn = {(float(u), float(v)) for u, v in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)}
    # Heading +y: width along x, length along y.
    expected = [(50 + 50 * x / y, 30 - 50 * z / y) for x in (-1, 1) for y in (8, 12) for z in (-0.75, 0.75)]
    assert np.array(sorted(drawn)) == pytest.approx(np.array(sorted(expected)), abs=0.06)


def test_a_box_behind_is_not_drawn_and_one_around_the_camera_is_cut() -> None:
    frame = make_frame()
    behind, around = project_boxes(
        Boxes(
            geometry_m9=np.concatenate([box(0, -10).geometry_m9, box(0.2, 1).geometry_m9]),
            labels_m=np.zeros(2, np.int64),
            scores_m=np.ones(2, np.float32),
        ),
        frame.calibration,
        0,
    )
    assert behind == ""
    numbers = [abs(float(n)) for n in re.findall(r"-?[\d.]+", around)]
    assert numbers
    assert max(numbers) <= 1e4


def test_weak_detections_are_left_out_and_cameras_stand_left_to_right() -> None:
    scene = draw_scene(make_frame(), {"truth": box(0, 10), "dense": box(0, 10, 0.1)}, 32.0)
    assert scene.counts == {"truth": 1, "dense": 0}
    assert scene.classes == {"car": {"truth": 1, "dense": 0}}
    assert [picture.name for picture in scene.cameras] == ["CAM_FRONT_LEFT", "CAM_FRONT"]


def test_the_birds_eye_view_is_right_way_round() -> None:
    points = np.array([[10.0, 0, 0, 0, 0], [0, 20.0, 0, 0, 0], [0, 20.0, 0, 0, 0], [50.0, 0, 0, 0, 0]], np.float32)
    frame = dataclasses.replace(make_frame(), points_p5=points)
    scene = draw_scene(frame, {}, 30.0)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(scene.bev.uri.partition(",")[2]))))
    rows, columns = np.nonzero(image[..., 3])
    # x = 10 m of +-30 lies at two thirds of the width, y = 20 m at a sixth from the top; 50 m is outside.
    assert sorted(zip(columns.tolist(), rows.tolist(), strict=True)) == [(450, 150), (600, 450)]


def test_headline_compares_like_with_like() -> None:
    found = headline(make_summary())
    assert (found.dense.title, found.pruned.title) == ("dense, ONNX Runtime fp32", "pruned, ONNX Runtime fp32")
    assert found.latency_share == pytest.approx(1.7 / 3.0)


def test_bars_of_the_slowest_variant_fill_the_width() -> None:
    bars = latency_bars(make_summary())
    assert [bar.title for bar in bars] == [v.title for v in make_summary().variants.values() if v.latency_ms]
    assert sum(part.percent for part in bars[0].stages) == pytest.approx(100.0)
    assert sum(part.percent for part in bars[1].stages) == pytest.approx(60.0)


def test_the_paper_table_gives_the_published_ratios() -> None:
    rows = {row.name: row for row in paper_table().rows}
    half = rows["AlterMOMA 50 %"]
    # 56.7 % fewer FLOPs, a speed-up of 1.42 and R 0.52 are the paper's and the design notes' own roundings.
    assert 1 - half.flops_share == pytest.approx(0.567, abs=5e-4)
    assert half.latency_share is not None
    assert 1 / half.latency_share == pytest.approx(1.42, abs=5e-3)
    assert half.realised_share == pytest.approx(0.52, abs=5e-3)
    assert rows["dense"].realised_share is None
    assert half.mAP_change == pytest.approx(-0.1)


@pytest.mark.real
def test_packaged_paper_figures_are_those_of_the_source() -> None:
    source = REPO.parent / "shared" / "paper" / "tables.json"
    if not source.is_file():
        pytest.skip("the paper's figures are not beside the checkout")
    published = json.loads(source.read_text())["table5_9_structured"]
    packaged = json.loads((REPO / "altermoma" / "report" / "paper_tables.json").read_text())
    columns = [published["columns"].index(name) for name in ("mAP", "NDS", "GFLOPs", "inference ms")]
    assert packaged["dense"] == [published["dense"][c] for c in columns]
    for name, values in packaged["rows"].items():
        assert values == [published[name.replace(" %", "").replace(" ", "-")][c] for c in columns]


def test_engines_show_what_was_asked_and_found() -> None:
    built = {
        "stage": "camera",
        "precision": "fp16",
        "sparsity": "2:4",
        "layers": 40,
        "found": {"fp16": 38, "fp32": 2},
        "sparse_eligible": 12,
        "sparse_picked": 7,
        "dla_core": -1,
        "dla_lacks": 0,
        "stripped": False,
        "megabytes": 9.25,
        "tensorrt": "10.3.0",
        "device": "Orin",
    }
    summary = make_summary()
    engines = dataclasses.replace(summary.engines, status="built", built=(built,))
    shown = render(dataclasses.replace(summary, engines=engines), None)
    for text in ("2:4 eligible", "fp16 2:4", "fp16 38, fp32 2 of 40", "<td>12</td><td>7</td>", "9.2"):
        assert text in shown
    assert "2:4 eligible" not in render(summary, None)
