import pytest
import torch
import torch.nn.functional as F
from timm.task import LogitDistillationTask
from torch import nn

from fdconv_zoo.training.distillation import Teacher, distillation_loss

STUDENT = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
OWN = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 0.5, 0.25)}


class Network(nn.Sequential):
    num_classes, in_chans = 4, 3

    def __init__(self, preprocessing):
        super().__init__(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 4))
        self.pretrained_cfg = preprocessing


def test_a_teacher_sees_its_own_normalization_and_keeps_the_students_order_of_classes():
    model = Network(OWN)
    pixels = torch.rand(5, 3, 2, 2)
    mean, std, own_mean, own_std = (
        torch.tensor(settings[key])[:, None, None] for settings in (STUDENT, OWN) for key in ("mean", "std")
    )
    teacher = Teacher(model, [2, 0, 1, 3], preprocessing=OWN, student=STUDENT)
    with torch.no_grad():
        expected = model.eval()((pixels - own_mean) / own_std)
    logits = teacher((pixels - mean) / std)
    assert torch.allclose(logits, expected[:, [2, 0, 1, 3]], atol=1e-5)
    assert not logits.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_is_that_of_timm(temperature):
    student, model = Network(STUDENT).eval(), Network(OWN)
    images, labels = torch.randn(6, 3, 2, 2), torch.tensor([0, 1, 2, 3, 0, 1])
    task = LogitDistillationTask(
        student, model, criterion=nn.CrossEntropyLoss(), temperature=temperature, distill_loss_weight=0.7, verbose=False
    )
    teacher = Teacher(model, range(4), preprocessing=OWN, student=STUDENT)
    logits = student(images)
    loss = F.cross_entropy(logits, labels) + 0.7 * distillation_loss(logits, teacher(images), temperature)
    assert torch.allclose(task.eval()(images, labels)["loss"], loss, rtol=1e-5)
