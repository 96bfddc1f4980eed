"""Which parameters a run trains: all, the classifier, or the classifier and FDConv's modulators."""

from torch import nn

from fdconv_zoo.errors import ConfigError
from fdconv_zoo.layers.modulators import find_modulators

CHOICES = ("all", "head", "modulators")


def freeze(model: nn.Module, tune: str) -> None:
    """Freeze all parameters except those that `tune` selects.

    Args:
        model: A timm model with its classifier.
        tune: 'all': all parameters; 'head': the classifier; 'modulators': the classifier and every KSM and FBM.

    Raises:
        ConfigError: nothing would be trained, or `tune` is 'modulators' and the model has none.
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
                "--tune modulators needs a model with FDConv layers, such as resnet50_fdconv, and this one has none; "
                "use --tune head or --tune all"
            )
        trained += modulators
    model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"--tune {tune}: the model's classifier has no parameters to train; use --tune all")


def train_mode(model: nn.Module) -> None:
    """Put `model` into training mode, except frozen normalization layers, which stay in eval mode."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            own = list(module.parameters(recurse=False))
            if own and not any(p.requires_grad for p in own):
                module.eval()
