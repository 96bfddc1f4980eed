"""What a run of segmentation or detection does not train: frozen stages, and what no output depends on."""

import pytest
import torch
import torch.distributed as dist
from conftest import randomize
from torch.nn.parallel import DistributedDataParallel

from fdconv_zoo.dense import Segmenter
from fdconv_zoo.dense.backbone import Backbone
from fdconv_zoo.dense.freezing import freeze_stages, freeze_unused
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.index import MODELS, read_entry
from fdconv_zoo.training.tuning import train_mode

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
MODULATORS = (".ksm.", ".fbm.")


def changed_by_training(backbone, images):
    """The names of the parameters and statistics that a step changes."""
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    train_mode(backbone)
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1.0)
    sum(maps.square().mean() for maps in backbone(images)).backward()
    optimizer.step()
    return {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}


def test_frozen_stages_keep_all_but_their_modulators():
    torch.manual_seed(0)
    backbone = randomize(Backbone("resnet10s_fdconv", arguments={"num_kernels": 4}), std=0.1)
    freeze_stages(backbone, 1)
    changed = changed_by_training(backbone, IMAGES)
    kept = {name for name in backbone.state_dict() if name.startswith(("model.conv1.", "model.bn1.", "model.layer1."))}
    learning = {name for name in kept if any(part in name for part in MODULATORS)}
    assert 0 < len(learning) < len(kept)
    assert not changed & (kept - learning)
    parameters = {name for name, _ in backbone.named_parameters()}
    assert changed >= parameters - (kept - learning)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("convnext_atto", "model.stages.0.", "model.stages.1."),
        ("swin_tiny_patch4_window7_224", "model.layers.0.", "model.layers.1."),
    ],
)
def test_stages_of_other_families(name, first, second):
    backbone = Backbone(name)
    freeze_stages(backbone, 0)
    trained = {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert any(key.startswith(first) for key in trained)
    freeze_stages(backbone, 1)
    trained = {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert not any(key.startswith(first) for key in trained)
    assert any(key.startswith(second) for key in trained)
    with pytest.raises(ConfigError, match=r"--frozen-stages 5: this backbone has 0 \(the stem\) to 4"):
        freeze_stages(backbone, 5)


@pytest.mark.parametrize("name", ["mask_rcnn", "faster_rcnn"])
def test_the_recipes_for_coco_freeze_the_first_stage(name):
    assert read_entry(MODELS / f"resnet50_fdconv.tv_in1k.{name}_coco.yaml").recipe["frozen_stages"] == 1


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def losses(model, images):
    return model(images, (images[:, 0] > 0.5).long()).values()


def test_parameters_without_gradients_do_not_stop_several_processes(process_group):
    """PSPNet takes three maps, and HRNet computes five."""
    torch.manual_seed(0)
    model = Segmenter("hrnet_w18_small", ["a", "b"], "pspnet").train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = torch.random.get_rng_state()
    freeze_unused(model, losses)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.requires_grad_(True)
    sum(losses(model, IMAGES)).backward()
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(trained) < len(list(model.parameters()))

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    parallel = DistributedDataParallel(model)
    for _ in range(2):  # the second forward pass raises if the first one's gradients are incomplete
        sum(losses(parallel, IMAGES)).backward()


@pytest.mark.parametrize("decoder", ["upernet", "mask2former"])
def test_nothing_else_is_unused(decoder):
    arguments = {"backbone_args": {"stem_pool": True, "num_kernels": 4}}
    if decoder == "mask2former":
        small = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "num_queries": 4}
        arguments["decoder_args"] = {**small, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2}
    model = Segmenter("resnet10s_fdconv", ["a", "b"], decoder, **arguments)
    freeze_unused(model, losses)
    assert not [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
