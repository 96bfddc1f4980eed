"""Train a recipe's model and its twins with other convolutions from several seeds, and compare them.

    python scripts/make_sample.py --full data/fashion_mnist
    fdconv-zoo compare --config resnet10s_fdconv.fashion_mnist --output runs/compare --dataset data/fashion_mnist \\
        --models resnet10s_plain resnet10s_fdconv 'resnet10s_odconv --lr 0.003' \\
        'resnet10s_fdconv --spectrum-lr auto --modulator-lr auto' --seeds 0 1 2 3 4
    fdconv-zoo compare --config resnet10s_fdconv.fashion_mnist.segment_canvases \\
        --output runs/compare_segment --start-from runs/compare \\
        --models resnet10s_plain resnet10s_fdw resnet10s_fdw_ksm resnet10s_fdconv resnet10s_odconv

The first model is the reference, with which the others are compared seed by seed. A model's own flags follow its name,
within quotation marks. They override the flags for all models and the recipe; `--model-kwargs` is replaced as a whole.
All flags are checked before the first run starts.

The figures are those of the last epoch's weights: no epoch is selected by its results. Classifiers are tested once, on
a split that is not used in training. Segmenters and detectors are evaluated on the validation images, or on
`--test-dataset`.

If the command is killed, start it again: it continues with the runs that are not done. With `--processes 8`, eight runs
share one device. Small networks leave most of a GPU idle, and share it better under NVIDIA's MPS
(`nvidia-cuda-mps-control -d`). To use several machines, give each some of the `--seeds` and the same `--output`, and at
the end run the command once with all seeds. At the end of each call, the models' training steps are measured,
interleaved. The command prints the table of its seeds, and writes it with the results of every run as
`comparison.json`. `results.png` plots these results, and `curves.png` the training.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdconv_zoo.cli import validate
from fdconv_zoo.cli.compared import Compared, parse_compared, refuse_reserved
from fdconv_zoo.cli.comparison_costs import measure_costs
from fdconv_zoo.cli.comparison_table import as_table, summarize
from fdconv_zoo.cli.detect import DetectionTask
from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.cli.ranges import check_ranges
from fdconv_zoo.cli.run_pool import run_side_by_side
from fdconv_zoo.cli.segment import SegmentationTask
from fdconv_zoo.cli.task import CommandTask, checked_arguments, run_task
from fdconv_zoo.cli.train import ClassificationTask
from fdconv_zoo.cli.trained_on import read_run
from fdconv_zoo.data import load_image_data
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.index import read_entry
from fdconv_zoo.profiling.band_twins import BAND_TWINS
from fdconv_zoo.profiling.learning_curves import draw_learning_curves
from fdconv_zoo.profiling.mobile_twins import MOBILE_TWINS
from fdconv_zoo.profiling.paired import CONFIDENCE
from fdconv_zoo.profiling.result_plot import draw_results
from fdconv_zoo.profiling.twins import TWINS, trained_twin
from fdconv_zoo.store.build import check_model_name
from fdconv_zoo.store.files import write_text
from fdconv_zoo.training.trainer import FREE_KEYS

TASKS = {task.name: task for task in (ClassificationTask, SegmentationTask, DetectionTask)}
METRICS = {
    ClassificationTask: {"top1": "top-1"},
    SegmentationTask: {"miou": "mIoU"},
    DetectionTask: {"box_ap": "box AP", "mask_ap": "mask AP"},
}
REPLACED = ("mixed_precision", "updates_per_epoch")  # if unset, a run's configuration has the values that were used


@dataclass(frozen=True)
class Run:
    """A run of a comparison.

    Attributes:
        item: The model.
        seed: Seed of the run.
        folder: Folder for all its files.
        flags: Command line of its training.
        args: The same, parsed.
    """

    item: Compared
    seed: int
    folder: Path
    flags: list[str]
    args: argparse.Namespace

    @property
    def done(self) -> Path:
        """File with the figures of the run, which exists once the run is done."""
        return self.folder / "test.json"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the flags."""
    parser = CommandParser(
        prog="fdconv-zoo compare",
        description=__doc__.partition("\n")[0],
        epilog="All other flags are those of the training command of the recipe, and hold for all models.",
    )
    parser.add_argument("--config", required=True, metavar="NAME", help="entry with the recipe of all runs")
    parser.add_argument("--test-split", default="test", metavar="NAME", help="split to test classifiers on")
    parser.add_argument(
        "--test-dataset",
        type=Path,
        metavar="DIR",
        help="folder to test segmentation and detection on: its validation images, which no training and no choice has "
        "seen; default: the figures are those of the dataset's validation images",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="MODEL",
        help="the reference, then those to compare with it: timm names, and "
        f"{', '.join((*TWINS, *BAND_TWINS, *MOBILE_TWINS))}; with flags of its own as one word: 'NAME --lr 0.003'",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the runs of each model")
    parser.add_argument("--processes", type=int, default=1, help="runs at once, each in a process of its own")
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="DIR",
        help="--output of an earlier comparison: a model without a --checkpoint of its own starts from the weights "
        "with the same seed there, those of the plain twin if it can load them, else its own",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for a folder per run, and the table")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. `argv` defaults to `sys.argv[1:]`."""
    args, recipe = build_parser().parse_known_args(argv)
    check_ranges(args)
    task_type = TASKS[read_entry(args.config).task]
    metrics = METRICS[task_type]
    items = parse_compared(args.models)
    runs = plan_runs(args, items, recipe, task_type)
    check_test(args, task_type, runs)
    check_done(runs)
    job = functools.partial(
        train_and_test, task_type=task_type, test_split=args.test_split, test_dataset=args.test_dataset
    )
    if args.processes > 1:
        todo = [run for run in runs if not run.done.exists()]
        run_side_by_side(job, todo, [run.folder.with_name(f"{run.folder.name}.log") for run in todo], args.processes)
    rows = [job(run) for run in runs]
    histories = {item.text: [read_history(run) for run in runs if run.item is item] for item in items}
    draw_learning_curves(histories, args.output / "curves.png", metrics)
    results = {item.text: rows[number :: len(items)] for number, item in enumerate(items)}
    draw_results(results, args.output / "results.png", metrics)
    costs = measure_costs(task_type, [run.args for run in runs[: len(items)]])
    table = [
        {"model": name, **cost, **summarize(own, results[items[0].text], metrics)}
        for (name, own), cost in zip(results.items(), costs, strict=True)
    ]
    comparison = {"reference": items[0].text, "confidence": CONFIDENCE, "models": table, "runs": rows}
    write_text(args.output / "comparison.json", json.dumps(comparison, indent=2) + "\n")
    print(as_table(table, metrics))


def plan_runs(
    args: argparse.Namespace, items: Sequence[Compared], recipe: Sequence[str], task_type: type[CommandTask]
) -> list[Run]:
    """Parse and check the flags of all runs, before any of them starts.

    Args:
        args: The command's own flags.
        items: The models.
        recipe: The flags for all models.
        task_type: The task.

    Returns:
        The runs of all models with the first seed, then those with the next seed, and so on.

    Raises:
        ConfigError: a flag is wrong, or weights to start from are missing.
    """
    refuse_reserved(recipe)
    if repeated := {seed for seed in args.seeds if args.seeds.count(seed) > 1}:
        raise ConfigError(f"--seeds: {', '.join(map(str, sorted(repeated)))} more than once; give each seed once")
    runs = []
    for seed in args.seeds:
        for item in items:
            folder = args.output / f"{item.folder}-seed{seed}"
            flags = ["--config", args.config, *recipe, "--model", item.model]
            flags += [*starting_weights(args.start_from, item, seed), *item.flags]
            flags += ["--seed", str(seed), "--output", str(folder), "--resume"]
            try:
                parsed = checked_arguments(task_type, flags)
                check_model_name(parsed.model)
            except ConfigError as error:
                place = f"--models {item.text!r}: " if item.flags else ""
                raise ConfigError(f"{place}{error}") from error
            runs.append(Run(item, seed, folder, flags, parsed))
    return runs


def starting_weights(comparison: Path | None, item: Compared, seed: int) -> list[str]:
    """Return the flags that make a run start from weights of an earlier comparison.

    Raises:
        ConfigError: there are no such weights.
    """
    if comparison is None or any(flag.partition("=")[0] == "--checkpoint" for flag in item.flags):
        return []
    twin = trained_twin(item.model)
    weights = comparison / f"{twin}-seed{seed}" / "last" / "model.safetensors"
    if not weights.is_file():
        raise ConfigError(
            f"--start-from {comparison}: no {weights.relative_to(comparison)}, from which {item.model} would start; "
            f"first train {twin} with seed {seed} there"
        )
    return ["--checkpoint", str(weights)]


def check_test(args: argparse.Namespace, task_type: type[CommandTask], runs: Sequence[Run]) -> None:
    """Check that there are images to test on, other than those of the runs.

    Raises:
        ConfigError: `--test-dataset` does not fit the task or the runs.
        DataError: classifiers have no `--test-split`, or something is wrong with its images.
    """
    dataset = args.test_dataset
    if task_type is ClassificationTask:
        if dataset is not None:
            raise ConfigError("--test-dataset is for segmentation and detection; use --test-split for classifiers")
        if not all(run.done.exists() for run in runs):
            flags = runs[0].args
            load_image_data(
                flags.dataset,
                image_column=flags.image_column,
                label_column=flags.label_column,
                split="validation",
                validation_split=args.test_split,
                num_workers=flags.workers,
            )
    elif dataset is not None:
        if not dataset.is_dir():
            raise ConfigError(f"--test-dataset {dataset}: no such folder")
        for flags in (run.args for run in runs):
            if flags.dataset and Path(flags.dataset).resolve() == dataset.resolve():
                raise ConfigError(f"--test-dataset {dataset}: it is the --dataset of the runs; name other images")
            if getattr(flags, "validation_annotations", None) or getattr(flags, "validation_images", None):
                raise ConfigError(
                    "--test-dataset with --validation-annotations or --validation-images, which would replace its "
                    "images: put the dataset's own files into a folder in one of the known formats"
                )


def check_done(runs: Sequence[Run]) -> None:
    """Check that existing runs were made with the same flags.

    Raises:
        ConfigError: a run was made with other flags.
    """
    for run in runs:
        before, now = read_run(str(run.folder)), json.loads(json.dumps(vars(run.args)))
        keys = [key for key in now if key in before and key not in FREE_KEYS]
        keys = [key for key in keys if not (key in REPLACED and now[key] is None)]
        if differing := [f"{key} ({before[key]!r} then, {now[key]!r} now)" for key in keys if before[key] != now[key]]:
            raise ConfigError(
                f"{run.folder}: the run there was made with other flags: {', '.join(differing)}. Use the same flags, "
                "or another --output"
            )


def train_and_test(
    run: Run, task_type: type[CommandTask], test_split: str, test_dataset: Path | None
) -> dict[str, Any]:
    """Train and test, unless that has been done, and return the figures of the last epoch's weights.

    Args:
        run: The run.
        task_type: The task.
        test_split: Split on which classifiers are tested.
        test_dataset: Folder on which other models are tested; None: take the figures of the validation images.

    Returns:
        `model`, `seed` and `folder` of the run, its metrics, the number of `images` that they were computed from, and
        as `validation` the metrics on the validation images.

    Raises:
        RunFolderError: another process is training in the folder.
    """
    classifies = task_type is ClassificationTask
    result = read_result(run)
    if result is None or (classifies and result["split"] != test_split):
        run_task(task_type, run.flags)
        if classifies:
            test = ["--model", str(run.folder / "last"), "--dataset", run.args.dataset]
            validate.main([*test, "--validation-split", test_split, "--json", str(run.done)])
        else:
            write_text(run.done, json.dumps({"results": [read_history(run)[-1]]}, indent=2) + "\n")
        result = read_result(run)
    if test_dataset is not None:
        result = test_on(test_dataset, run, task_type)
    metrics, last = METRICS[task_type], read_history(run)[-1]
    return {
        "model": run.item.text,
        "seed": run.seed,
        "folder": run.folder.name,
        **{key: result[key] for key in (*metrics, "images") if result[key] is not None},
        "validation": {key: last[key] for key in metrics if last[key] is not None},
    }


def read_result(run: Run) -> dict[str, Any] | None:
    """Read the figures of a run that is done; None if it is not."""
    if not run.done.exists():
        return None
    (result,) = json.loads(run.done.read_text())["results"]
    return result


def test_on(dataset: Path, run: Run, task_type: type[CommandTask]) -> dict[str, Any]:
    """Evaluate the last epoch's weights on a folder's validation images, unless that has been done."""
    output = run.folder / "test"
    results = output / "results.json"
    if not results.exists() or json.loads(results.read_text())["dataset"] != str(dataset):
        test = ["--evaluate", str(run.folder / "last"), "--dataset", str(dataset), "--output", str(output)]
        run_task(task_type, [*(flag for flag in run.flags if flag != "--resume"), *test, "--overwrite"])
    return json.loads(results.read_text())


def read_history(run: Run) -> list[dict[str, Any]]:
    """Read the rows of a run's metrics.jsonl, one per epoch."""
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
