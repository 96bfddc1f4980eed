import itertools

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow

from fdconv_zoo.errors import ConfigError
from fdconv_zoo.training.batches import EpochSampler, RepeatingSampler, TrainingBatches, training_images


def numbered_images(count: int) -> Dataset:
    """Images whose pixel is their number, so that a batch shows which they are."""
    images = [Pillow.new("L", (1, 1), number) for number in range(count)]
    features = Features({"image": Image(), "label": ClassLabel(names=["even", "odd"])})
    made = Dataset.from_dict({"image": images, "label": [number % 2 for number in range(count)]}, features=features)
    return made.cast_column("image", Image(decode=False))


def pixel(image: Pillow.Image) -> torch.Tensor:
    return torch.tensor([[[image.getpixel((0, 0))]]])


def make(source, **options) -> TrainingBatches:
    options = {"batch_size": 3, "seed": 5, **options}
    shared = {key: options[key] for key in ("seed", "rank", "world_size") if key in options}
    skip = options.pop("skip_bad_images", False)
    dataset = training_images(source, pixel, mode="L", skip_bad_images=skip, **shared)
    return TrainingBatches(dataset, **options)


def numbers(batches) -> list[list[int]]:
    return [images.flatten().tolist() for images, _ in batches]


@pytest.fixture(scope="module")
def images():
    return numbered_images(50)


def test_processes_share_an_epoch_without_overlap(images):
    shares = [make(images, rank=rank, world_size=2, batches_per_update=2) for rank in range(2)]
    assert [share.updates_per_epoch for share in shares] == [4, 4]  # 50 // (3 * 2 * 2)
    taken = [list(itertools.chain(*numbers(share.epoch(0)))) for share in shares]
    assert [len(part) for part in taken] == [24, 24]
    assert len({*taken[0], *taken[1]}) == 48


def test_labels_stay_with_their_images(images):
    for batch, labels in make(images).epoch(0):
        assert (batch.flatten() % 2 == labels).all()


@pytest.mark.parametrize("done", [0, 1, 7, 15])
def test_an_epoch_goes_on_from_any_batch(images, done):
    whole = numbers(make(images).epoch(3))
    resumed = make(images)
    next(resumed.epoch(0))
    assert numbers(resumed.epoch(3, done)) == whole[done:]


def test_epochs_and_seeds_differ(images):
    orders = [numbers(make(images, seed=seed).epoch(epoch)) for seed, epoch in itertools.product((5, 6), (0, 1))]
    assert all(first != second for first, second in itertools.combinations(orders, 2))


def test_no_iterator_draws_from_the_global_generator(images):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    numbers(make(images).epoch(0))
    assert torch.equal(torch.rand(1), expected)


def test_too_few_images_for_one_update_is_an_error(images):
    with pytest.raises(ConfigError, match="has 50 images, but one update takes 60"):
        make(images, batch_size=15, world_size=2, batches_per_update=2)


def test_an_epoch_can_be_shorter_than_the_dataset(images):
    batches = make(images, updates_per_epoch=2)
    assert len(numbers(batches.epoch(0))) == 2
    assert make(images, updates_per_epoch=999).updates_per_epoch == 16


def test_a_stream_needs_the_length_of_an_epoch(images):
    with pytest.raises(ConfigError, match="--updates-per-epoch"):
        make(images.to_iterable_dataset())


def test_a_stream_shorter_than_its_epoch_begins_again(images, caplog):
    batches = make(images.to_iterable_dataset(), updates_per_epoch=20)
    order = numbers(batches.epoch(0))
    assert len(order) == 20
    assert order[16:] == order[:4]
    assert "starts again: lower --updates-per-epoch" in caplog.text
    with pytest.raises(ConfigError, match="fewer images than one batch"):
        next(make(images.to_iterable_dataset(), updates_per_epoch=1, batch_size=51).epoch(0))


def test_a_stream_goes_on_from_any_batch_in_each_process(images):
    stream = images.to_iterable_dataset(num_shards=2)
    options = {"updates_per_epoch": 8, "world_size": 2}
    wholes = [numbers(make(stream, rank=rank, **options).epoch(1)) for rank in range(2)]
    assert not {*itertools.chain(*wholes[0])} & {*itertools.chain(*wholes[1])}
    assert numbers(make(stream, rank=1, **options).epoch(1, done=5)) == wholes[1][5:]


def test_sampler_is_a_permutation():
    sampler = EpochSampler(10, 10, seed=0)
    assert sorted(sampler) == list(range(10))
    sampler.set_epoch(0, start=4)
    assert len(list(sampler)) == len(sampler) == 6


def test_repeated_images_come_together_and_are_augmented_differently():
    whole = list(RepeatingSampler(10, 10, seed=0, repeats=3))
    assert [time for _, time in whole] == [0, 1, 2] * 3 + [0]
    assert len({image for image, _ in whole}) == 4
    shares = [list(RepeatingSampler(10, 5, seed=0, repeats=3, rank=rank, world_size=2)) for rank in range(2)]
    assert [pair for both in zip(*shares, strict=True) for pair in both] == whole
    sampler = RepeatingSampler(10, 10, seed=0, repeats=3)
    sampler.set_epoch(0, start=4)
    assert list(sampler) == whole[4:]

    def noisy(image):
        return torch.rand(1, 1, 1)

    dataset = training_images(numbered_images(4), noisy, mode="L")
    (batch,) = TrainingBatches(dataset, batch_size=4, repeats=2).epoch(0)
    assert len(set(batch[0].flatten().tolist())) == 4
    (again,) = TrainingBatches(dataset, batch_size=4, repeats=2).epoch(0)
    assert torch.equal(again[0], batch[0])
    assert torch.equal(dataset[2, 0][0], dataset[2][0])


def test_weights_say_how_often_images_come():
    weights = np.array([1.0] * 90 + [9.0] * 10)  # as balanced sampling of 90 and 10 images
    draws = [pair for epoch in range(20) for pair in drawn(weights, epoch)]
    rare = sum(image >= 90 for image, _ in draws) / len(draws)
    assert 0.45 < rare < 0.55
    assert len(set(drawn(weights, 0))) == 100  # each time is another number
    assert drawn(weights, 0) != drawn(weights, 1)


def drawn(weights, epoch) -> list[tuple[int, int]]:
    sampler = RepeatingSampler(len(weights), len(weights), seed=0, weights=weights)
    sampler.set_epoch(epoch)
    return list(sampler)
