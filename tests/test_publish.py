"""Publishing to the loopback Hub: the files, the upload, its verification, and the state after failures."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import timm
import torch
import yaml
from conftest import randomize
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import _pagination
from loopback_hub import Fault
from run_scripts import load_script
from safetensors import safe_open

from fdconv_zoo.errors import HubError, PublishError, UserError
from fdconv_zoo.index import MODELS, read_entry
from fdconv_zoo.index.run_card import find_origin
from fdconv_zoo.index.run_record import RunRecord
from fdconv_zoo.publish import make_repository, make_run_repository, publish
from fdconv_zoo.store.build import resolve_preprocessing
from fdconv_zoo.store.export import export_model
from fdconv_zoo.store.upload import Target

NAME = "resnet10s_fdconv.fashion_mnist"
ENTRY = MODELS / f"{NAME}.yaml"
REPO = "ada/small"
CLASSES = [f"class {number}" for number in range(7)]
# Few channels, to be fast.
SMALL = dict(channels=(24, 24, 24, 24), num_kernels=8, num_classes=7)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Make the folder of a run, and its model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    model = randomize(timm.create_model("resnet10s_fdconv", **SMALL), std=0.1).eval()
    arguments = dict(class_names=CLASSES, preprocessing=resolve_preprocessing(model), model_args=SMALL)
    for place in (folder, folder / "last"):
        export_model(model, place, **arguments)
    flags = {"model": "resnet10s_fdconv", "dataset": "/home/ada/secret/garden birds", "pretrained": False, "lr": 0.01}
    (folder / "train_config.yaml").write_text(
        yaml.safe_dump({**flags, "class_names": CLASSES, "num_train_images": 1234})
    )
    rows = [dict(epoch=epoch, top1=top1, top5=90.0, loss=1.5, images=56) for epoch, top1 in ((1, 61.25), (2, 50.5))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, model


@pytest.fixture
def ada(hub):
    hub.log_in(hub.add_user("ada"))
    return hub


def publish_script(*arguments):
    load_script("publish").main(["--repo", REPO, *map(str, arguments)])


@pytest.fixture
def made(run, tmp_path):
    """Write the files of a repository."""
    folder = tmp_path / "made"
    make_run_repository(run[0], REPO, folder)
    return folder


def same_logits(source, model, **kwargs):
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        return torch.equal(timm.create_model(source, pretrained=True, **kwargs).eval()(x), model(x))


def test_a_dry_run_writes_what_would_be_uploaded(run, ada, tmp_path, capsys):
    folder = tmp_path / "made"
    publish_script("--run", run[0], "--dry-run", folder)
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "metrics.jsonl", "model.safetensors", "train_config.yaml"
    }  # fmt: skip
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = file.metadata()
    assert stored["format"] == "pt"
    assert stored["model"] == "resnet10s_fdconv"
    assert "license" not in stored
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == CLASSES
    assert config["num_classes"] == 7
    assert "num_classes" not in config["model_args"]
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "timm"
    assert f"hf-hub:{REPO}" in card.text
    for own in ("garden birds", "1,234 training images, 56 validation images", "| 1 | 56 | 61.25 % |", "6. class 6"):
        assert own in card.text
    assert "random weights" in card.text
    assert card.data.eval_results[0].metric_value == 61.25
    everything = "".join(path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors")
    for foreign in ("ashion", "91.93", "apache", "ada/secret", "T-shirt"):  # of the entry, and of this machine
        assert foreign not in everything, foreign
    assert same_logits(f"local-dir:{folder}", run[1])
    assert not ada.requests
    assert "this would be uploaded to ada/small" in capsys.readouterr().out

    with pytest.raises(Exception, match="it is not empty"):
        publish_script("--run", run[0], "--dry-run", folder)


def test_the_last_epoch_has_its_own_figures_and_a_licence_is_the_publishers(run, tmp_path):
    folder = tmp_path / "made"
    publish_script(ENTRY, "--run", run[0] / "last", "--dry-run", folder, "--license", "mit")
    card = ModelCard.load(folder / "README.md")
    assert "| 2 | 56 | 50.50 % |" in card.text
    assert "weights of the last epoch" in card.text
    assert card.data.license == "mit"
    assert "91.93" not in card.text


@pytest.mark.parametrize(
    ("flags", "origin"),
    [
        ({"pretrained": False}, "random weights"),
        ({"checkpoint": "/home/ada/w.safetensors", "pretrained": True}, "the weights of a file"),
        ({"pretrained": True}, "the weights of resnet10s_fdconv.fashion_mnist"),  # which the package has
        ({"pretrained": True, "model": "resnet50_fdconv.a1_in1k"}, "timm/resnet50.a1_in1k"),
        ({"pretrained": True, "model": "hf-hub:ada/mine@v1"}, "ada/mine"),
        ({"pretrained": True, "smoke": True}, "random weights"),
    ],
)
def test_the_origin_of_a_runs_weights(flags, origin, tmp_path):
    assert find_origin(RunRecord(tmp_path, {"model": NAME, **flags}, {}, False)) == origin


def test_what_is_no_run_is_refused_with_the_file(run, tmp_path):
    broken = tmp_path / "run"
    for name, content, message in (
        ("metrics.jsonl", "{", r"metrics\.jsonl: it does not hold the epochs"),
        ("train_config.yaml", "- 1", r"train_config\.yaml: it does not hold the flags"),
        ("train_config.yaml", "a: [", r"train_config\.yaml: it is damaged"),
        ("config.json", "[]", r"config\.json does not contain"),
    ):
        shutil.copytree(run[0], broken, dirs_exist_ok=True)
        (broken / name).write_text(content)
        with pytest.raises(UserError, match=message):
            publish_script("--run", broken, "--dry-run", tmp_path / "made")
    (tmp_path / "config.json").write_text('{"backbone": "resnet18", "decoder": "unet"}')
    with pytest.raises(UserError, match=r"it has no train_config\.yaml, so it is not the output folder of a run"):
        publish_script("--run", tmp_path)
    with pytest.raises(UserError, match="name an entry of the index, or a run with --run"):
        publish_script()


def test_weights_that_cannot_be_downloaded_are_one_line(ada):
    with ada.offline(), pytest.raises(HubError, match="offline mode is on: unset HF_HUB_OFFLINE") as caught:
        publish_script(MODELS / "resnet18_fdconv.a1_in1k.yaml", "--dry-run", ada.home / "made")
    assert "pretrained_cfg_overlay" not in str(caught.value)


def test_a_published_model_makes_the_round_trip(run, ada, capsys):
    publish_script("--run", run[0], "--tag", "v1", "--private")
    output = capsys.readouterr().out
    assert "published: timm.create_model('hf-hub:ada/small@v1', pretrained=True)" in output
    assert same_logits("hf-hub:ada/small@v1", run[1])
    assert HfApi().model_info(REPO).private

    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForImageClassification.from_pretrained(REPO).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x).logits, run[1](x))
    assert model.config.id2label[3] == "class 3"

    ada.log_out()
    with pytest.raises(Exception, match="Repository Not Found"):
        timm.create_model("hf-hub:ada/small", pretrained=True, cache_dir=str(ada.home / "other"))


def test_nothing_is_overwritten_without_force(run, ada, made):
    first = publish(made, Target(REPO))
    with pytest.raises(PublishError, match=r"ada/small exists and has .*--create-pr.*--force"):
        publish(made, Target(REPO))
    (made / "extra.txt").write_text("more")
    proposed = publish(made, Target(REPO, create_pr=True))
    assert HfApi().model_info(REPO).sha == first
    assert same_logits(f"hf-hub:ada/small@{proposed}", run[1])
    assert publish(made, Target(REPO, force=True)) == HfApi().model_info(REPO).sha


def test_a_branch_is_created(ada, made):
    commit = publish(made, Target(REPO, revision="next"))
    branches = {branch.name: branch.target_commit for branch in HfApi().list_repo_refs(REPO).branches}
    assert branches["next"] == commit
    assert HfApi().list_repo_files(REPO, revision="main") in ([], [".gitattributes"])


def test_converted_weights_are_described_as_such(hub, tmp_path):
    entry = replace(read_entry(MODELS / "resnet18_fdconv.a1_in1k.yaml"), model="resnet10s_fdconv.a1_in1k")
    make_repository(timm.create_model("resnet10s_fdconv"), entry, "any", REPO, tmp_path / "made")
    with safe_open(tmp_path / "made" / "model.safetensors", "pt") as file:
        assert file.metadata()["source"] == "timm/resnet18.a1_in1k"
        assert file.metadata()["status"] == "converted, not trained"
    assert "not trained" in (tmp_path / "made" / "README.md").read_text()


def test_the_shipped_weights_are_published_unchanged(ada, tmp_path):
    publish_script(ENTRY, "--dry-run", tmp_path / "made")
    shipped = timm.create_model(NAME, pretrained=True).eval()
    assert same_logits(f"local-dir:{tmp_path / 'made'}", shipped)
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["label_names"] == list(shipped.pretrained_cfg["label_names"])
    with safe_open(tmp_path / "made" / "model.safetensors", "pt") as file:
        assert file.metadata()["status"] == "trained"


def test_a_recipe_needs_its_run(run, tmp_path):
    entry = MODELS / "resnet50_fdconv.tv_in1k.mask_rcnn_coco.yaml"
    with pytest.raises(Exception, match="has no weights: use those of a run with --run"):
        load_script("publish").main([str(entry), "--repo", REPO])
    other = timm.create_model("test_resnet", num_classes=7)
    export_model(other, tmp_path, class_names=CLASSES, preprocessing=resolve_preprocessing(other), model_args={})
    with pytest.raises(Exception, match=r"holds a test_resnet, but the entry is a resnet10s_fdconv"):
        publish_script(ENTRY, "--run", tmp_path)


@pytest.mark.skipif(hasattr(_pagination, "get_session"), reason="huggingface_hub 1.3 does not retry all requests")
@pytest.mark.parametrize("fault", [Fault.cut_upload(), Fault.server_error(), Fault.rate_limited()])
def test_an_interrupted_upload_is_completed(run, ada, made, fault):
    ada.fail(fault, times=1)
    commit = publish(made, Target(REPO))
    assert same_logits(f"hf-hub:ada/small@{commit}", run[1])


def test_a_failed_upload_publishes_nothing_and_resumes(run, ada, made):
    ada.fail(Fault.server_error(500).on("POST", "/commit/"), times=50)
    with pytest.raises(PublishError, match="nothing was published"):
        publish(made, Target(REPO))
    ada.heal()
    with pytest.raises(EntryNotFoundError):
        timm.create_model("hf-hub:ada/small", pretrained=True)
    sent = sum(request.method == "PUT" for request in ada.requests)
    assert sent
    commit = publish(made, Target(REPO))
    assert sum(request.method == "PUT" for request in ada.requests) == sent
    assert same_logits(f"hf-hub:ada/small@{commit}", run[1])


def test_a_damaged_upload_is_not_tagged(ada, made):
    ada.fail(Fault.wrong_content(), times=50)
    with pytest.raises(PublishError, match=r"commit \w+ was uploaded, but not verified"):
        publish(made, Target(REPO, tag="v1"))
    ada.heal()
    assert not HfApi().list_repo_refs(REPO).tags


def test_missing_and_expired_tokens(hub, made, capsys, caplog):
    with pytest.raises(PublishError, match="log in with `hf auth login`"):
        publish(made, Target(REPO))
    token = hub.add_user("ada")
    hub.log_in(token)
    hub.expire(token)
    with pytest.raises(PublishError, match="hf auth login") as caught:
        publish(made, Target(REPO))
    for text in (str(caught.value), *capsys.readouterr(), caplog.text):
        assert not re.search(re.escape(token), text)
