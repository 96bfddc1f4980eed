"""Two processes on one machine (gloo): no parameter of an FDConv model is left without a gradient."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import run_in_two

from fdconv_zoo import FDConv2d, FDLinear


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        FDConv2d(3, 20, 3, padding=1, num_kernels=4), nn.ReLU(), FDConv2d(20, 24, 1), nn.Flatten(2), FDLinear(16, 8)
    )


def data():
    torch.manual_seed(1)
    return torch.randn(4, 3, 4, 4), torch.randn(4, 24, 8)


def train(model, x, target):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    # Frozen statistics, so that two halves of a batch see what the whole batch sees.
    model = DistributedDataParallel(build().eval())
    x, target = (tensor[rank::2] for tensor in data())
    train(model, x, target)
    torch.save([parameter.detach() for parameter in model.module.parameters()], f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_like_one(tmp_path):
    run_in_two(worker, str(tmp_path))
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    model = build().eval()
    train(model, *data())
    for first, second, alone in zip(*ranks, model.parameters(), strict=True):
        assert torch.equal(first, second)
        assert torch.allclose(first, alone, rtol=1e-4, atol=1e-5)
