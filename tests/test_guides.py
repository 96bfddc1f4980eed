"""What the guides promise beside their blocks: the errors that docs/guides/questions.md quotes, and configurations."""

import pytest
import timm
import torch
from examples import DOCS
from run_blocks import read_blocks
from torch import nn

import fdconv_zoo
from fdconv_zoo import FDConv2d, FDLinear
from fdconv_zoo.__main__ import main
from fdconv_zoo.cli.task import run_task
from fdconv_zoo.cli.train import ClassificationTask
from fdconv_zoo.errors import UserError
from fdconv_zoo.store import read_checkpoint
from fdconv_zoo.training.run_folder import RunFolder

QUESTIONS = (DOCS / "guides/questions.md").read_text(encoding="utf-8")


class Code:
    """Something that a pickle runs code for."""

    def __reduce__(self):
        return (print, ("ran",))


def load_code(folder):
    torch.save({"weight": Code()}, folder / "model.pth")
    read_checkpoint(folder / "model.pth")


def used_folder(folder):
    (folder / "train_config.yaml").write_text("model: resnet10s_fdconv\n")
    RunFolder(folder, resume=False, overwrite=False)


def too_small_batch(folder):
    images = ("--dataset", "fashion_mnist_sample", "--limit", "10", "--output", str(folder / "run"), "--workers", "0")
    run_task(ClassificationTask, ["--model", "resnet10s_fdconv", "--no-pretrained", *images])


def swin(size):
    small = dict(depths=(1,), num_heads=(1,), embed_dim=24)
    return timm.create_model("swin_tiny_patch4_window7_224_fdconv", **small)(torch.rand(1, 3, size, size))


def trained():
    model = nn.Sequential(FDConv2d(8, 8, 3, num_kernels=4))
    for parameter in model[0].ksm.parameters():
        nn.init.normal_(parameter)
    return model


RAISED = {
    "expected a batch (B, C, H, W). For a single image add a batch axis: x[None].": lambda _: FDConv2d(3, 8, 3)(
        torch.rand(3, 8, 8)
    ),
    "expected a floating type; convert it with x.float().": lambda _: FDConv2d(3, 8, 3)(
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    ),
    "FDConv2d has no weight: its kernels depend on the image.": lambda _: FDConv2d(8, 8, 3).weight,
    "fewer than min_channels=17 input or output channels": lambda _: fdconv_zoo.convert_model(
        nn.Sequential(nn.Conv2d(3, 8, 3))
    ),
    "num_kernels is 64: it must lie between 1 and ": lambda _: FDLinear(4, 4),
    "modulators that are not neutral": lambda _: fdconv_zoo.to_plain(trained()),
    "Input height (64) doesn't match model (224).": lambda _: swin(64),
    "Expected more than 1 value per channel when training": lambda _: timm.create_model("resnet10s_fdconv")(
        torch.rand(1, 3, 4, 4)
    ),
    "torch.jit.script cannot compile a FDConv2d": lambda _: torch.jit.script(FDConv2d(8, 8, 3, num_kernels=4)),
    "which is code": load_code,
    "it holds another run; continue it with --resume, delete it with --overwrite": used_folder,
    "images, but one update takes 64": too_small_batch,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("datasets_cache", "on_one_cpu_thread")
@pytest.mark.parametrize("words", RAISED)
def test_questions_quote_what_is_raised(words, tmp_path):
    with pytest.raises((UserError, ValueError, TypeError, AttributeError, AssertionError, RuntimeError)) as raised:
        RAISED[words](tmp_path)
    assert words in str(raised.value)
    assert words in QUESTIONS.replace("\n", " ")


def test_misspelled_names_of_models(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--model", "resnet50_fdconvv", "--dataset", "nowhere", "--output", "nowhere"])
    assert "--model resnet50_fdconvv: no such model; did you mean " in capsys.readouterr().err
    assert "--model resnet50_fdconvv: no such model; did you mean ..." in QUESTIONS


def test_accelerate_reads_the_configuration(tmp_path, monkeypatch):
    commands = pytest.importorskip("accelerate.commands.config.config_args")
    monkeypatch.chdir(tmp_path)
    for block in read_blocks(DOCS / "guides/several_gpus.md"):
        if block.language == "python":
            exec(block.text, {})
    config = commands.load_config_from_file("four_gpus.yaml")
    assert (config.num_processes, config.mixed_precision) == (4, "bf16")
    assert config.distributed_type == "MULTI_GPU"
