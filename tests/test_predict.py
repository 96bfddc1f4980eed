import csv
import json
import shutil

import pytest
import timm
import torch
from run_scripts import load_script

from fdconv_zoo.cli.predict import class_names
from fdconv_zoo.data import SAMPLE, load_image_data, open_image
from fdconv_zoo.errors import ConfigError, DataError
from fdconv_zoo.store.build import build_model, resolve_preprocessing
from fdconv_zoo.store.export import export_model

predict = load_script("predict")


@pytest.fixture(scope="module")
def data():
    return load_image_data(SAMPLE, split="validation", limit=3)


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    model, arguments = build_model("resnet10s_fdconv", pretrained=False)
    torch.nn.init.normal_(model.fc.weight)
    export_model(
        model,
        folder,
        class_names=data.class_names,
        preprocessing=resolve_preprocessing(model),
        model_args=arguments,
    )
    return folder


def test_names_the_likeliest_class_of_files_and_folders(data, folder, tmp_path, capsys):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    expected = []
    for i, record in enumerate(data.validation):
        image = open_image(record["image"])
        image.save(tmp_path / f"{i}.png")
        with torch.no_grad():
            probability, index = model(transform(image)[None]).softmax(1)[0].max(0)
        expected.append(f"{tmp_path}/{i}.png: {data.class_names[index]} {100 * probability:.1f} %")

    predict.main(["--model", str(folder), "--top", "1", "--device", "cpu", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == expected
    predict.main(["--model", str(folder), "--top", "1", "--device", "cpu", str(tmp_path / "1.png")])
    assert capsys.readouterr().out.splitlines() == expected[1:2]


def test_shows_the_true_class_of_sample_images(data, folder, capsys):
    predict.main(["--model", str(folder), "--sample", "3", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"{SAMPLE} ({data.class_names[record['label']]})" for record in data.validation
    ]
    assert all(line.count(" %") == 3 for line in lines)


def test_writes_the_probabilities_of_all_classes(data, folder, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/broken.png").write_bytes(b"no image")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    expected = []
    for i, record in enumerate(data.validation):
        image = open_image(record["image"])
        image.save(tmp_path / f"in/{i}.png")
        with torch.no_grad():
            expected.append(model(transform(image)[None]).softmax(1)[0])
    written = ["--csv", str(tmp_path / "p.csv"), "--json", str(tmp_path / "p.json")]
    with pytest.raises(DataError, match="1 files were left out"):  # the others are written all the same
        predict.main(["--model", str(folder), "--device", "cpu", *written, str(tmp_path / "in")])

    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = json.loads((tmp_path / "p.json").read_text())
    assert found["classes"] == data.class_names
    assert len(rows) == len(found["images"]) == 3
    for i, (row, item, probabilities) in enumerate(zip(rows, found["images"], expected, strict=True)):
        assert row["file"] == item["file"] == f"{tmp_path}/in/{i}.png"
        assert row["prediction"] == item["prediction"] == data.class_names[probabilities.argmax()]
        assert float(row["probability"]) == item["probability"] == max(item["probabilities"])
        columns = [float(row[f"probability of {name}"]) for name in data.class_names]
        assert columns == item["probabilities"] == pytest.approx(probabilities.tolist(), rel=1e-4, abs=1e-7)

    with pytest.raises(ConfigError, match=r"--csv .*p.csv exists: choose another file, or remove it"):
        predict.main(["--model", str(folder), "--device", "cpu", *written, str(tmp_path / "in")])


def test_classes_of_imagenet_have_names_of_their_own():
    names = class_names(timm.create_model("test_resnet"), "test_resnet")
    assert len(set(names)) == 1000
    assert (names[134], names[517]) == ("crane", "crane (517)")


def test_class_names_that_do_not_fit_are_refused(folder, data, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "label_names": data.class_names[1:]}))
    with pytest.raises(ConfigError, match="9 different label_names in its configuration do not name its 10"):
        predict.main(["--model", str(other), "--sample", "1", "--device", "cpu"])


def test_a_broken_file_does_not_stop_the_others(data, folder, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"no image")
    open_image(data.validation[0]["image"]).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"1 files were left out:\n .*a.png: cannot be read .* Repair or remove it\.$"):
        predict.main(["--model", str(folder), "--device", "cpu", str(tmp_path)])
    assert capsys.readouterr().out.startswith(f"{tmp_path}/b.png: ")


def test_says_what_is_missing(folder, tmp_path):
    with pytest.raises(ConfigError, match="--sample N"):
        predict.main(["--model", str(folder)])
    with pytest.raises(ConfigError, match="no such file"):
        predict.main(["--model", str(folder), str(tmp_path / "none.png")])
    with pytest.raises(ConfigError, match="no images"):
        predict.main(["--model", str(folder), str(tmp_path)])
