"""Knowledge distillation: trains a classifier on the logits of another one (Hinton et al., 2015)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Teacher(nn.Module):
    """A trained classifier, with frozen parameters, that predicts for the images of its student.

    Args:
        model: The classifier, from images to logits. It is put into eval mode.
        numbers: The teacher's index of each of the student's K classes.
        preprocessing: Preprocessing of the teacher's images, as `resolve_preprocessing` returns it.
        student: Preprocessing of the student's images.
    """

    def __init__(
        self,
        model: nn.Module,
        numbers: Sequence[int],
        *,
        preprocessing: Mapping[str, Any],
        student: Mapping[str, Any],
    ):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        mean, std = (torch.tensor(preprocessing[key]).view(-1, 1, 1) for key in ("mean", "std"))
        student_mean, student_std = (torch.tensor(student[key]).view(-1, 1, 1) for key in ("mean", "std"))
        self.register_buffer("scale", student_std / std)
        self.register_buffer("shift", (student_mean - mean) / std)
        self.register_buffer("numbers", torch.tensor(numbers))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K), in the student's order of classes.

        Args:
            images: Images (B, C, H, W), normalized for the student.
        """
        return self.model(images * self.scale + self.shift)[:, self.numbers]


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Compute KL(teacher || student), the divergence of class probabilities, as timm's `LogitDistillationTask` does.

    Args:
        logits: Logits of the student, (B, K).
        teacher_logits: Logits of the teacher, (B, K).
        temperature: Divides the logits. The loss is multiplied by its square, which preserves the scale of gradients.
    """
    own, aim = (F.log_softmax(values.float() / temperature, 1) for values in (logits, teacher_logits))
    return F.kl_div(own, aim, reduction="batchmean", log_target=True) * temperature**2
