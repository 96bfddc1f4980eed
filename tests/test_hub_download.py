"""Loading models from the Hub with timm and transformers, tested with the loopback Hub."""

import subprocess
import sys
import textwrap

import pytest
import timm
import torch
from conftest import randomize
from contract import assert_same, images, plain_twin
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from loopback_hub import Fault, LoopbackHub
from run_scripts import ROOT
from safetensors.torch import save

try:
    from fdconv_zoo.store.export import export_model
except ImportError:  # the scripts that write a folder need timm 1.0.26
    from timm.models._hub import save_for_hf

    export_model = None

REPO = "ada/flowers"
PLAIN = "timm/resnet18.a1_in1k"  # timm's repository, from which resnet18_fdconv.a1_in1k starts
CLASSES = ["daisy", "rose", "tulip"]
MEAN = (0.1, 0.2, 0.3)


def make_model(seed=0):
    torch.manual_seed(seed)
    args = dict(channels=(24, 24, 32, 32), num_kernels=4)
    return randomize(timm.create_model("resnet10s_fdconv", num_classes=3, **args), std=0.1).eval(), args


def exported(folder, seed=0):
    """Make a model and the files that a run exports."""
    model, args = make_model(seed)
    folder.mkdir()
    if export_model:
        export_model(model, folder, class_names=CLASSES, preprocessing=dict(mean=MEAN), model_args=args)
    else:
        model.pretrained_cfg["mean"] = MEAN
        labels = dict(label_names=CLASSES)
        save_for_hf(model, folder, model_config=labels, model_args=args, safe_serialization=True)
    return model, {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def published(hub, tmp_path):
    """Publish a model in a public repository."""
    model, files = exported(tmp_path / "run")
    hub.add_repo(REPO, files)
    yield model
    assert not hub.unknown


@pytest.fixture
def x():
    torch.manual_seed(3)
    return torch.randn(2, 3, 32, 32)


def load(name=REPO):
    return timm.create_model(f"hf-hub:{name}", pretrained=True).eval()


@torch.no_grad()
def assert_equal_logits(model, expected, x):
    assert torch.equal(model(x), expected(x))


def test_by_name(hub, published, x):
    model = load()
    assert_equal_logits(model, published, x)
    assert model.pretrained_cfg["label_names"] == CLASSES
    assert tuple(timm.data.resolve_model_data_config(model)["mean"]) == MEAN
    assert not any(request.token for request in hub.requests)
    number = len(hub.requests)
    assert_equal_logits(load(), published, x)
    assert not any(request.method == "GET" for request in hub.requests[number:])  # the files are in the cache


def test_at_a_revision(hub, published, tmp_path, x):
    repo = hub.repos[REPO]
    repo.tags["v1"] = repo.branches["main"]
    newer, files = exported(tmp_path / "newer", seed=1)
    hub.commit(REPO, files)
    for revision in ("@v1", f"@{repo.tags['v1']}"):
        assert_equal_logits(load(REPO + revision), published, x)
    for revision in ("", "@main"):
        assert_equal_logits(load(REPO + revision), newer, x)


@pytest.mark.parametrize("revision", ["", "@v1"])
def test_from_the_cache(hub, published, revision, x):
    hub.repos[REPO].tags["v1"] = hub.repos[REPO].branches["main"]
    load(REPO + revision)
    number = len(hub.requests)
    with hub.offline():
        assert_equal_logits(load(REPO + revision), published, x)
    assert len(hub.requests) == number
    hub.stop()
    assert_equal_logits(load(REPO + revision), published, x)


def test_transformers(hub, published, x):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    hub.repos[REPO].tags["v1"] = hub.repos[REPO].branches["main"]

    def load_with_transformers():
        return transformers.AutoModelForImageClassification.from_pretrained(REPO, revision="v1").eval()

    model = load_with_transformers()
    assert list(model.config.id2label.values()) == CLASSES
    with torch.no_grad():
        assert torch.equal(model(x).logits, published(x))
        with hub.offline():
            assert torch.equal(load_with_transformers()(x).logits, published(x))


def test_weights_of_an_entrypoint(hub):
    """With its tag, as timm's users write it."""
    torch.manual_seed(0)
    plain = plain_twin("resnet18_fdconv", full_size=True).eval()
    hub.add_repo(PLAIN, {"model.safetensors": save(plain.state_dict())})
    model = timm.create_model("resnet18_fdconv.a1_in1k", pretrained=True).eval()
    with torch.no_grad():
        x = images(1)
        assert_same(model(x), plain(x))
    assert [request.path.split("/")[-1] for request in hub.requests if request.method == "HEAD"] == [
        "model.safetensors"
    ]


def test_private_repository(hub, published, x):
    hub.repos[REPO].private = True
    with pytest.raises(RepositoryNotFoundError, match="authenticated"):
        load()
    hub.log_in(hub.add_user("eve"))
    with pytest.raises(RepositoryNotFoundError):
        load()
    assert not hub.cached()
    token = hub.add_user("ada", role="read")
    hub.log_in(token)
    assert_equal_logits(load(), published, x)
    assert {request.token for request in hub.requests[-2:] if request.server == "hub"} == {token}
    assert not any(request.token for request in hub.requests if request.server == "storage")


def test_gated_repository(hub, published, x):
    hub.repos[REPO].gated = "manual"
    with pytest.raises(GatedRepoError, match="log in"):
        load()
    hub.log_in(hub.add_user("eve"))
    with pytest.raises(GatedRepoError, match="not in the authorized list"):
        load()
    hub.repos[REPO].granted.add("eve")
    assert_equal_logits(load(), published, x)


def test_token_that_expires_between_two_files(hub, published, x):
    hub.repos[REPO].private = True
    hub.log_in(hub.add_user("ada"))
    hub.fail(Fault.expired_token().on("HEAD", "safetensors"))
    with pytest.raises(RuntimeError, match=r"'ada/flowers': it rejected your token as invalid or expired"):
        load()
    assert_equal_logits(load(), published, x)


def test_damaged_weights_at_a_revision(hub, published, x):
    hub.repos[REPO].tags["v1"] = hub.repos[REPO].branches["main"]
    hub.fail(Fault.wrong_content().on(path="^/cdn/"))
    with pytest.raises(RuntimeError, match=r"'ada/flowers@v1': model\.safetensors arrived damaged"):
        load(f"{REPO}@v1")
    assert [name.rpartition("/")[2] for name in hub.cached()] == ["config.json"]
    assert_equal_logits(load(f"{REPO}@v1"), published, x)


def test_unknown_repository_and_revision(hub, published):
    with pytest.raises(RepositoryNotFoundError, match="ada/weeds"):
        load("ada/weeds")
    with pytest.raises(RevisionNotFoundError, match="v9"):
        load(f"{REPO}@v9")
    assert not hub.cached()


def test_mirror_in_another_process(hub, published, tmp_path, x):
    """HF_ENDPOINT names a mirror. The token is stored in a file, and not even the debug log shows it."""
    expected = published(x).sum().item()
    with LoopbackHub() as mirror:
        token = mirror.add_user("ada")
        mirror.repos[REPO] = hub.repos[REPO]
        mirror.repos[REPO].private = True
        env = {**hub.env(tmp_path / "home", token), "HF_ENDPOINT": mirror.url, "PYTHONPATH": str(ROOT)}
        env |= {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug", "OMP_NUM_THREADS": "1"}
        code = f"""
            import logging
            logging.basicConfig(level=logging.DEBUG)
            import timm, torch, fdconv_zoo
            model = timm.create_model("hf-hub:{REPO}", pretrained=True).eval()
            torch.manual_seed(3)
            print("sum", model(torch.randn(2, 3, 32, 32)).sum().item())
        """
        process = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, timeout=120
        )
    assert process.returncode == 0, process.stderr
    assert float(process.stdout.split()[-1]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert "resolve/main/config.json" in process.stderr
    assert token not in process.stdout + process.stderr
    assert not hub.requests
    assert any(request.token == token for request in mirror.requests)
    assert not any(request.token for request in mirror.requests if request.server == "storage")
    assert all(
        token not in path.read_bytes().decode(errors="ignore") for path in cache_files(tmp_path / "home" / "hub")
    )


def cache_files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]
