"""Predictions of segmenters and detectors on images, folders and videos, from the command line."""

import json
import struct

import av
import numpy as np
import pytest
import torch
from conftest import randomize
from PIL import Image
from pycocotools import mask as rle
from run_scripts import load_script

from fdconv_zoo.dense import Detector, Segmenter, prediction
from fdconv_zoo.dense.video import upright
from fdconv_zoo.errors import ConfigError, DataError

CLASSES = ["background", "cat", "dog"]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    torch.manual_seed(0)
    arguments = dict(backbone_args={"stem_pool": True, "fdconv_layers": ()}, decoder_args={"decoder_channels": 8})
    model = randomize(Segmenter("resnet10s_fdconv", CLASSES, "upernet", **arguments), std=0.1).eval()
    folder = tmp_path_factory.mktemp("segmenter")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    torch.manual_seed(0)
    model = Detector(
        "resnet10s_fdconv",
        CLASSES[1:],
        "mask_rcnn",
        backbone_args={"fdconv_layers": ()},
        head_args={"box_score_thresh": 0.01, "box_detections_per_img": 4},
        fpn_channels=16,
        min_size=64,
    ).eval()
    folder = tmp_path_factory.mktemp("detector")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=5)
        stream.width, stream.height = 66, 50
        for number in range(3):
            frame = Image.new("RGB", (66, 50), (80 * number, 40, 90))
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())
    return path


def run(*arguments):
    load_script("predict").main([*map(str, arguments), "--device", "cpu"])


def test_a_segmenter_writes_masks_and_pictures(segmenter, photo, tmp_path, capsys):
    model, folder = segmenter
    run("--model", folder, "--output", tmp_path / "seen", photo)
    with Image.open(tmp_path / "seen" / "photo.mask.png") as file:
        mask = np.asarray(file)
    image = torch.from_numpy(np.asarray(Image.open(photo))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.mean, model.std))
    with torch.no_grad():
        expected = model(((image - mean) / std)[None])[0].argmax(0)
    assert np.array_equal(mask, expected)
    assert Image.open(tmp_path / "seen" / "photo.png").size == (70, 40)
    summary = capsys.readouterr().out
    share = 100 * (mask == mask[0, 0]).mean()
    assert f"{CLASSES[mask[0, 0]]} {share:.1f} %" in summary


def test_a_detector_writes_objects_and_pictures(detector, photo, tmp_path):
    model, folder = detector
    run("--model", folder, "--output", tmp_path / "seen", "--score", 0.02, photo)
    image = torch.from_numpy(np.asarray(Image.open(photo))).permute(2, 0, 1) / 255
    with torch.no_grad():
        (expected,) = model([image])
    found = json.loads((tmp_path / "seen" / "detections.json").read_text())
    assert len(found) == len(expected["boxes"]) > 0
    for item, box, label, score, mask in zip(
        found, *(expected[key] for key in ("boxes", "labels", "scores", "masks")), strict=True
    ):
        left, top, width, height = item["bbox"]
        assert torch.allclose(torch.tensor([left, top, left + width, top + height]), box, atol=1e-3)
        assert (item["class"], item["file"]) == (CLASSES[label], str(photo))
        assert item["score"] == pytest.approx(score.item())
        assert np.array_equal(rle.decode(item["segmentation"]), mask[0] > 0.5)
    assert Image.open(tmp_path / "seen" / "photo.png").width >= 70


@pytest.mark.parametrize("kind", ["segmenter", "detector"])
def test_videos_frame_by_frame(kind, request, video, tmp_path, capsys):
    _, folder = request.getfixturevalue(kind)
    run("--model", folder, "--output", tmp_path / "seen", video)
    with av.open(str(tmp_path / "seen" / "film.mp4")) as file:
        frames = [frame.to_image() for frame in file.decode(video=0)]
        assert file.streams.video[0].average_rate == 5
    assert len(frames) == 3
    assert frames[0].size[0] % 66 < 2
    assert "3 frames" in capsys.readouterr().out


def test_folders_and_a_model_from_the_hub(segmenter, photo, hub, tmp_path, capsys):
    _, folder = segmenter
    hub.add_repo("ada/pets", {file.name: file.read_bytes() for file in folder.iterdir()})
    run("--model", "hf-hub:ada/pets", "--output", tmp_path / "seen", photo.parent)
    assert (tmp_path / "seen" / "photo.mask.png").exists()


def test_output_is_not_overwritten_and_bad_input_is_named(segmenter, photo, video, tmp_path):
    _, folder = segmenter
    model, output = ("--model", folder), ("--output", tmp_path / "seen")
    with pytest.raises(ConfigError, match="use --output DIR"):
        run(*model, photo)
    run(*model, *output, photo)
    with pytest.raises(ConfigError, match=r"photo.png exists"):
        run(*model, *output, photo)
    other = tmp_path / "other" / "photo.png"
    other.parent.mkdir()
    other.write_bytes(b"no image")
    with pytest.raises(ConfigError, match="several files would be written to"):
        run(*model, "--output", tmp_path / "new", photo, other)
    with pytest.raises(DataError, match=r"1 of 1 files were left out:\n.*photo.png: cannot be read as an image"):
        run(*model, "--output", tmp_path / "new", other)
    video.write_bytes(b"no video")
    with pytest.raises(DataError, match=r"film.mp4: cannot be read as a video"):
        run(*model, "--output", tmp_path / "new", video)
    assert not (tmp_path / "new" / "film.mp4").exists()


def test_a_broken_file_does_not_stop_the_others(detector, photo, video, tmp_path):
    _, folder = detector
    other = tmp_path / "x.png"
    other.write_bytes(photo.read_bytes())
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    video.write_bytes(b"no video")
    with pytest.raises(DataError, match=r"2 of 4 files were left out:\n.*broken.png.*\n.*film.mp4") as caught:
        run("--model", folder, "--output", tmp_path / "seen", broken, photo, video, other)
    assert "--skip" not in str(caught.value)
    found = json.loads((tmp_path / "seen" / "detections.json").read_text())
    assert {item["file"] for item in found} == {str(photo), str(other)}


def test_an_interrupted_run_leaves_what_it_found(detector, photo, tmp_path, monkeypatch):
    model, _ = detector
    other = tmp_path / "x.png"
    other.write_bytes(photo.read_bytes())
    pictures = iter([prediction.draw_detections])

    def draw(*arguments):
        try:
            return next(pictures)(*arguments)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(prediction, "draw_detections", draw)
    with pytest.raises(KeyboardInterrupt):
        prediction.predict_files(model, [photo, other], tmp_path / "seen")
    found = json.loads((tmp_path / "seen" / "detections.json").read_text())
    assert {item["file"] for item in found} == {str(photo)}


# The matrix in a track's header maps x and y to ax + cy and bx + dy: a, b, c, d and what is then in the upper left.
MATRICES = {
    "none": ((1, 0, 0, 1), "red"),
    "quarter turn clockwise": ((0, 1, -1, 0), "blue"),
    "half turn": ((-1, 0, 0, -1), "white"),
    "quarter turn counterclockwise": ((0, -1, 1, 0), "lime"),
    "mirrored": ((-1, 0, 0, 1), "lime"),
    "upside down": ((1, 0, 0, -1), "blue"),
}


@pytest.mark.parametrize(("matrix", "corner"), MATRICES.values(), ids=MATRICES)
def test_frames_are_upright(video, matrix, corner):
    stored = Image.new("RGB", (64, 48))  # clockwise from the upper left: red, lime, white, blue
    for colour, place in {"red": (0, 0), "lime": (32, 0), "white": (32, 24), "blue": (0, 24)}.items():
        stored.paste(colour, (*place, place[0] + 32, place[1] + 24))
    with av.open(str(video), "w") as file:
        stream = file.add_stream("mpeg4", rate=5)
        stream.width, stream.height = stored.size
        file.mux(stream.encode(av.VideoFrame.from_image(stored)))
        file.mux(stream.encode())
    content = bytearray(video.read_bytes())
    start = content.find(b"tkhd") + 44
    a, b, c, d = (number << 16 for number in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    video.write_bytes(content)
    with av.open(str(video)) as file:
        shown = upright(next(file.decode(video=0)))
    assert shown.size == ((64, 48) if matrix[0] else (48, 64))
    distance = np.abs(np.array(shown.getpixel((8, 8))) - Image.new("RGB", (1, 1), corner).getpixel((0, 0)))
    assert distance.max() < 60
