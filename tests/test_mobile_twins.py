"""MobileNetV2's twins start from the plain network's weights as the same function, and load again from a run."""

import timm
import torch
from conftest import relative_error
from safetensors.torch import save_file

from fdconv_zoo import FDConv2d
from fdconv_zoo.profiling.mobile_twins import MODEL
from fdconv_zoo.profiling.peers import DCD, ODConv
from fdconv_zoo.store.export import export_model

DYNAMIC = {"fdconv_mobilenetv2": FDConv2d, "odconv_mobilenetv2": ODConv, "dcd_mobilenetv2": DCD}


def test_all_start_from_the_plain_weights_and_load_again(tmp_path):
    torch.manual_seed(0)
    plain, x = timm.create_model(MODEL).eval(), torch.randn(2, 3, 64, 64)
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    overlay = {"file": str(tmp_path / "plain.safetensors")}
    model = timm.create_model("plain_mobilenetv2", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert relative_error(model(x), plain(x)) < 1e-5
    for name, kind in DYNAMIC.items():
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
        replaced = {layer for layer, module in model.named_modules() if isinstance(module, kind)}
        assert replaced == {
            layer
            for layer, module in plain.named_modules()
            if layer.startswith(tuple(f"blocks.{stage}." for stage in (3, 4, 5, 6)))
            and getattr(module, "kernel_size", 0) == (1, 1)
        }
        assert relative_error(model(x), plain(x)) < 1e-5, name
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        folder = tmp_path / name
        folder.mkdir()
        preprocessing = {
            key: plain.pretrained_cfg[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")
        }
        export_model(model, folder, class_names=None, preprocessing=preprocessing, model_args={})
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(again(x), model(x)), name
        assert relative_error(model(x), plain(x)) > 1e-3, name


def test_a_classifier_of_few_classes_starts_small():
    model = timm.create_model("plain_mobilenetv2", num_classes=2)
    assert model.classifier.weight.std() < 0.02
