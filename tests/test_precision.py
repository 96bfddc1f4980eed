"""What half precision costs an FDConv network, beside what it costs the plain one.

pytest tests/test_precision.py -s        prints the table that README.md quotes
"""

import pytest
import timm
import torch
from timm.data import create_transform
from torch import nn

import fdconv_zoo  # noqa: F401  registers the models
from fdconv_zoo.data import SAMPLE, load_image_data, open_image

NAME, SIZE = "resnet10s_fdconv", 32


def drift(model, x, dtype, *, autocast):
    """Root-mean-square deviation of the logits from float32, as a fraction of their own root mean square."""
    with torch.no_grad():
        expected = model(x)
        if autocast:
            with torch.autocast("cpu", dtype=dtype):
                logits = model(x)
        else:
            logits = model.to(dtype)(x.to(dtype))
            model.float()
    assert logits.isfinite().all()
    return ((logits.float() - expected).square().mean() / expected.square().mean()).sqrt().item()


def twins(name, size):
    """An FDConv network whose modulators vary by some percent, and its plain twin with the same base weights."""
    plain = timm.create_model(name, fdconv_layers=(), zero_init_last=False)
    model = timm.create_model(name, zero_init_last=False)
    model.load_state_dict(plain.state_dict())
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim > 1 and (".ksm." in parameter_name or ".fbm." in parameter_name):
            nn.init.normal_(parameter, std=0.1 * parameter[0].numel() ** -0.5)
    return calibrate(model, images(64, size)), calibrate(plain, images(64, size))


def images(count, size):
    """Real ones: KSM normalizes what tells images apart, and white noise is all alike on average."""
    records = load_image_data(SAMPLE, limit=count, split="validation").validation
    transform = create_transform((3, size, size), is_training=False, crop_pct=1.0)
    return torch.stack([transform(open_image(record["image"])) for record in records])


def calibrate(model, x):
    """Fill the running statistics, without which activations of an untrained network grow from layer to layer."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches
    with torch.no_grad():
        model.train()(x)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "parameters"])
def test_half_precision_costs_what_it_costs_the_plain_network(dtype, autocast):
    model, plain = twins(NAME, SIZE)
    x = images(16, SIZE)
    ours = drift(model, x, dtype, autocast=autocast)
    theirs = drift(plain, x, dtype, autocast=autocast)
    mode = "autocast" if autocast else ".to()"
    print(f"\n{NAME} {str(dtype).removeprefix('torch.')} {mode}: FDConv {ours:.1e}, plain {theirs:.1e}")
    assert ours < 2 * theirs
