"""Web app that shows what FDConv does in a model, for images of the visitor.

python app/app.py                 # the models of the index
python app/app.py runs/mine       # also the output folder of a run
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import looking
from checkpoints import Checkpoint, Checkpoints

from fdconv_zoo.analysis.report import ABOUT_MAPS, ABOUT_MODULATORS, ABOUT_MOVEMENT, ReportImage
from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.data import SAMPLE, load_image_data, open_image
from fdconv_zoo.errors import UserError

_UPLOAD = "20mb"
_WAITING = 20  # requests in the queue; further ones are rejected with a message
_CACHE = (600, 3600)  # every ten minutes, files of visitors older than an hour are deleted
_EXAMPLES = 6

_CSS = """
.pictures {display: flex; flex-wrap: wrap; gap: 1rem}
.pictures figure {flex: 1 1 260px; max-width: 560px; margin: 0}
.pictures img {width: 100%; border-radius: 6px; background: white}
.pictures figcaption {font-size: 0.85em; text-align: center}
.table {overflow: auto; max-height: 420px; margin-bottom: 1rem}
.table table {border-collapse: collapse; font-size: 0.9em}
.table caption {text-align: left; font-weight: 600}
.table th, .table td {text-align: left; padding: 0.25rem 0.6rem; border: 0 solid var(--border-color-primary)}
.table th, .table td {border-bottom-width: 1px}
.table tbody th {font-weight: 400}
.upload img {width: 100%; height: 100%; object-fit: contain}
@media (max-width: 500px) {.tab-container button {padding: 0 7px; font-size: 0.85rem}}
"""
_INTRODUCTION = """# Frequency Dynamic Convolution

A network with [FDConv](https://arxiv.org/abs/2503.18783) (CVPR 2025) assembles new kernels for every image, and weights
frequency bands at every pixel. Choose a checkpoint, drop an image, and see what its layers do with it.
"""
_ABOUT_EDGES = (
    "The title of a map has its band, in cycles per sample of the layer's input, and Spearman's rank correlation of "
    "the map with the local gradient energy of the image. Where it is positive, the band is amplified at edges and "
    "texture; where it is negative, in flat regions. Without a number, the map is the same at every pixel: before "
    "training, or where the layer's input is too small to have frequencies in the band."
)


def build(checkpoints: Checkpoints, examples: Sequence[str]) -> gr.Blocks:
    """Build the app.

    Args:
        checkpoints: Checkpoints to choose from.
        examples: Files of at least two images. The first two are shown when the app opens.
    """

    def look(name: str, file: str | None, other_file: str | None, layer: str | None) -> Iterator[list]:
        yield [None, gr.skip(), *([None] * 7)]  # clears earlier results, also if an error follows
        with explained():
            checkpoint = checkpoints.load(name)
            layers = looking.band_layers(checkpoint)
            layer = layer if layer in layers else next(iter(layers), None)
            images = read(checkpoint, file, other_file)
            found = [looking.describe(checkpoint), layer_list(layers, layer)]
            if file:
                found += [looking.classify(checkpoint, images[0]) or None, bands(checkpoint, images[0], layer)]
                found += changes(checkpoint, images)
            yield [*found, *([None] * (9 - len(found)))]

    def show_layer(name: str, file: str | None, layer: str | None) -> str | None:
        with explained():
            checkpoint = checkpoints.load(name)
            return bands(checkpoint, *read(checkpoint, file), layer) if file else None

    def compare(name: str, file: str | None, other_file: str | None) -> list:
        with explained():
            checkpoint = checkpoints.load(name)
            if not file:
                raise gr.Error("Add an image first.", print_exception=False)
            found = looking.compare_with_plain(checkpoint, read(checkpoint, file, other_file))
            return [found.summary, found.prediction or None, looking.render_tables(found.figures, found.layers)]

    # All events share one limit: a model runs for one visitor at a time, since it is observed while it runs.
    one_at_a_time = dict(concurrency_limit=1, concurrency_id="model")
    with gr.Blocks(title="FDConv", analytics_enabled=False, delete_cache=_CACHE) as app:
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                name = gr.Dropdown(checkpoints.names, value=checkpoints.names[0], label="Checkpoint")
                about = gr.Markdown()
                image = upload(examples[0], "Image")
                gr.Examples([[file] for file in examples], image, label="Examples of Fashion-MNIST")
                other = upload(examples[1], "Second image, to see what changes")
                gr.Markdown("Images are deleted after an hour.")
            with gr.Column(scale=5, min_width=300):
                prediction = gr.Label(label="Prediction")
                with gr.Tabs():
                    with gr.Tab("Bands"):
                        layer = layer_list([])
                        maps = gr.HTML()
                        explain(ABOUT_MAPS, _ABOUT_EDGES)
                    with gr.Tab("Kernels"):
                        movement = gr.HTML()
                        explain(ABOUT_MOVEMENT)
                    with gr.Tab("Modulators"):
                        modulators = gr.HTML()
                        explain(ABOUT_MODULATORS)
                    with gr.Tab("Plain twin"):
                        gr.Markdown("The network with ordinary convolutions that is nearest to this one.")
                        start = gr.Button("Compare with the plain twin", variant="primary")
                        summary = gr.Markdown()
                        plain = gr.Label(label="Prediction of the plain twin")
                        tables = gr.HTML()
        twin = [summary, plain, tables]
        shown = [about, layer, prediction, maps, movement, modulators, *twin]
        gr.on(
            [app.load, name.select, image.change, other.change],
            look,
            [name, image, other, layer],
            shown,
            api_name="look",
            trigger_mode="always_last",
            show_progress_on=[prediction, maps, movement, modulators],
            **one_at_a_time,
        )
        layer.select(show_layer, [name, image, layer], maps, api_name="show_layer", **one_at_a_time)
        start.click(compare, [name, image, other], twin, api_name="compare", **one_at_a_time)
    return app.queue(max_size=_WAITING)


@contextmanager
def explained() -> Iterator[None]:
    """Show a `UserError` to the visitor; its message reveals nothing about this machine. Only log other errors."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def read(checkpoint: Checkpoint, *files: str | None) -> list[ReportImage]:
    """Read the images that are given, and show remarks about them."""
    images = []
    for file in filter(None, files):
        image, remarks = looking.read_upload(file, checkpoint)
        images.append(image)
        for remark in remarks:
            gr.Warning(remark)
    return images


def bands(checkpoint: Checkpoint, image: ReportImage, layer: str | None) -> str:
    """Draw the bands of a layer, or say that there are none."""
    if layer is None:
        return "No layer of this model has Frequency Band Modulation, so there are no maps."
    if layer not in looking.band_layers(checkpoint):
        raise gr.Error("This checkpoint has no such layer: choose one of the list.", print_exception=False)
    return looking.render_pictures(looking.draw_bands(checkpoint, image, layer))


def changes(checkpoint: Checkpoint, images: Sequence[ReportImage]) -> list:
    """Show what changes from one image to the other: the kernels, and the table of modulators."""
    if len(images) == 1:
        return ["Add a second image to see how far the kernels move from one to the other.", None]
    picture = looking.draw_movement(checkpoint, *images)
    return [looking.render_pictures([picture]), looking.render_tables(looking.tabulate_modulators(checkpoint, images))]


def upload(file: str, label: str) -> gr.Image:
    """Make an image field that shows `file` at first."""
    sources = ["upload", "clipboard"]
    field = gr.Image(
        file,
        type="filepath",
        label=label,
        sources=sources,
        height=220,
        buttons=[],
        alt_text=label,
        elem_classes="upload",
    )
    # Gradio's own preprocessing decodes the file, and its errors do not explain what is wrong with a damaged one.
    field.preprocess = lambda payload: payload and payload.path
    return field


def layer_list(layers: Sequence[str], value: str | None = None) -> gr.Dropdown:
    """Make the list of layers. It accepts any name, which may belong to an earlier checkpoint; `bands` checks it."""
    return gr.Dropdown(layers, value=value, label="Layer", allow_custom_value=True)


def explain(*texts: str) -> None:
    """Add texts in a section that is closed at first."""
    with gr.Accordion("What this shows", open=False):
        for text in texts:
            gr.Markdown(text)


def write_examples(folder: str | Path) -> list[str]:
    """Write images of the packaged sample, each of a different class, and return their paths."""
    records = load_image_data(SAMPLE, split="validation", limit=100).validation
    by_class = {record["label"]: record["image"] for record in records}
    files = [str(Path(folder) / f"{label}.png") for label in sorted(by_class)][:_EXAMPLES]
    for label, file in zip(sorted(by_class), files, strict=False):
        open_image(by_class[label]).save(file)
    return files


def main(argv: Sequence[str] | None = None) -> None:
    """Start the app. `argv` defaults to `sys.argv[1:]`."""
    parser = CommandParser(
        description="Show in a browser what FDConv does in a model. GRADIO_SERVER_NAME and GRADIO_SERVER_PORT are the "
        "address to listen at; without them, only this machine can open the app."
    )
    parser.add_argument("models", nargs="*", help="models to offer besides the index: what `fdconv-zoo predict` takes")
    args = parser.parse_args(argv)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    checkpoints = Checkpoints(args.models)
    with tempfile.TemporaryDirectory() as folder:
        build(checkpoints, write_examples(folder)).launch(
            max_file_size=_UPLOAD,
            css=_CSS,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            footer_links=["gradio", "settings"],
        )


if __name__ == "__main__":
    run_command(main)
