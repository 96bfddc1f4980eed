"""Draw the figures in docs/images, from the packaged model and a photograph of scikit-learn.

python scripts/make_figures.py

The photograph is china.jpg of scikit-learn, by danielbuechele, CC BY 2.0; docs/how_it_works.md names what is drawn from
it. Needs `pip install '.[train,analysis]'`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms.functional import normalize, to_tensor

import fdconv_zoo  # noqa: F401  registers the models
from fdconv_zoo.analysis.kernel_figures import draw_groups, draw_movement, draw_spatial_response
from fdconv_zoo.analysis.kernels import disjoint_kernels, group_map, kernel_movement, spatial_response
from fdconv_zoo.analysis.maps import band_names, modulation_maps
from fdconv_zoo.data import SAMPLE, load_image_data, open_image
from fdconv_zoo.layers.fbm import BAND_EDGES
from fdconv_zoo.ops import modulate_bands

MODEL, LAYER = "resnet10s_fdconv.fashion_mnist", "layer2.0.conv1"
IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def split_bands(image: Tensor, edges: Sequence[float] = BAND_EDGES) -> list[Tensor]:
    """Divide an image (1, C, H, W) into the bands of FBM, highest first. Their sum is the image."""
    nothing = torch.zeros(1, len(edges), *image.shape[2:])
    lowest = modulate_bands(image, nothing, edges, "plain")
    bands = []
    for band in range(len(edges)):
        chosen = nothing.clone()
        chosen[:, band] = 1
        bands.append(modulate_bands(image, chosen, edges, "plain") - lowest)
    return [*bands, lowest]


def draw_image_and_factors(photo: Image.Image, model: torch.nn.Module) -> Figure:
    """Draw a photograph, its bands, and the factor of each band in a layer of the model."""
    pixels = to_tensor(photo)[None]
    config = timm.data.resolve_model_data_config(model)
    maps = modulation_maps(model, normalize(pixels, config["mean"], config["std"]), [LAYER])[LAYER][0]
    *bands, lowest = (band[0].permute(1, 2, 0).numpy() for band in split_bands(pixels))

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 4)
    top[0].imshow(photo)
    top[0].set_title("image")
    bottom[0].imshow(lowest.clip(0, 1))
    bottom[0].set_title("below 0.0625: kept")
    names = band_names(BAND_EDGES)
    for panel, below, band, factors, name in zip(top[1:], bottom[1:], bands, maps, names, strict=True):
        panel.imshow((0.5 + 2 * band).clip(0, 1))
        panel.set_title(name)
        below.imshow(factors, cmap="RdBu_r")
        below.set_title(f"its factor: {factors.min():.2f} to {factors.max():.2f}")
    for panel in (*top, *bottom):
        panel.set_axis_off()
    return figure


def save(figure: Figure, name: str) -> None:
    """Save a figure: photographs as JPEG, others as PNG."""
    figure.savefig(IMAGES / name, dpi=100, pil_kwargs={"quality": 85} if name.endswith("jpg") else {"optimize": True})


def main() -> None:
    """Draw all figures."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    IMAGES.mkdir(exist_ok=True)
    model = timm.create_model(MODEL, pretrained=True).eval()
    photo = Image.fromarray(load_sample_image("china.jpg")).crop((0, 0, 427, 427)).resize((256, 256), Image.LANCZOS)
    save(draw_image_and_factors(photo, model), "bands.jpg")

    layer = model.layer1[0].conv2
    save(draw_groups(group_map(layer)), "groups.png")
    save(draw_spatial_response(spatial_response(disjoint_kernels(layer))), "responses.png")

    sample = load_image_data(SAMPLE, split="validation").validation
    other = next(index for index, label in enumerate(sample["label"]) if label != sample[0]["label"])
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = [transform(open_image(sample[index]["image"]))[None] for index in (0, other)]
    save(draw_movement(kernel_movement(model, *images)), "movement.png")


if __name__ == "__main__":
    main()
