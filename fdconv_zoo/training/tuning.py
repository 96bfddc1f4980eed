"""Which parameters a run trains: all, the classifier head, or the head and FDConv's modulators."""

from torch import nn

from fdconv_zoo.errors import ConfigError
from fdconv_zoo.layers import FrequencyBandModulation, KernelSpatialModulation

CHOICES = ("all", "head", "modulators")


def freeze(model: nn.Module, tune: str) -> None:
    """Leave gradients on only for what `tune` names.

    Args:
        model: A timm model with its classifier.
        tune: 'all'; 'head': the classifier; 'modulators': the classifier and every KSM and FBM.

    Raises:
        ConfigError: 'modulators' and the model has none, or nothing would be trained.
    """
    if tune == "all":
        return
    # A distilled model has two heads.
    classifier = model.get_classifier()
    trained = list(classifier) if isinstance(classifier, tuple) else [classifier]
    if tune == "modulators":
        modulators = find_modulators(model)
        if not modulators:
            raise ConfigError(
                "--tune modulators needs a model with FDConv layers (such as resnet50_fdconv), and this one has none; "
                "use --tune head or --tune all"
            )
        trained += modulators
    model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"--tune {tune}: the model's classifier has no parameters to train; use --tune all")


def find_modulators(model: nn.Module) -> list[nn.Module]:
    """Every KSM and FBM in the model."""
    return [m for m in model.modules() if isinstance(m, KernelSpatialModulation | FrequencyBandModulation)]


def train_mode(model: nn.Module) -> None:
    """Put `model` into training mode, but keep frozen normalisation layers on their stored statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            own = list(module.parameters(recurse=False))
            if own and not any(p.requires_grad for p in own):
                module.eval()
