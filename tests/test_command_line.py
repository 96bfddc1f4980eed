"""`fdconv-zoo`: the index, cards, downloads, verification and predictions from the command line."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import hf_hub_download
from loopback_hub import Fault
from PIL import Image
from run_scripts import load_script

from fdconv_zoo import cli
from fdconv_zoo.__main__ import main
from fdconv_zoo.cli.overview import COMMANDS
from fdconv_zoo.index import read_index, timm_name
from fdconv_zoo.store.build import build_model, resolve_preprocessing
from fdconv_zoo.store.export import export_model
from fdconv_zoo.store.find import find_weights
from fdconv_zoo.store.hub_errors import explain

ENTRY, REPO = "resnet18_fdconv.tv_in1k", "timm/resnet18.tv_in1k"
WEIGHTS = bytes(range(256)) * 20


@pytest.fixture
def run(capsys):
    """The lines a command prints; the tests of failures look at the error."""

    def run(*arguments):
        main([*map(str, arguments)])
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def fails(capsys):
    def fails(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([*map(str, arguments)])
        lines = capsys.readouterr().err.splitlines()
        assert caught.value.code == 1
        (line,) = [line for line in lines if line.startswith("error: ")]
        assert "Traceback" not in lines
        return line

    return fails


@pytest.fixture
def weights(hub):
    """A Hub with the weights that an entry starts from."""
    hub.add_repo(REPO, {"model.safetensors": WEIGHTS, "config.json": b"{}"})
    return hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model, arguments = build_model("resnet10s_fdconv", pretrained=False, num_classes=2)
    torch.nn.init.normal_(model.fc.weight)
    export_model(
        model,
        folder,
        class_names=["cat", "dog"],
        preprocessing=resolve_preprocessing(model),
        model_args=arguments,
    )
    return folder


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.effect_noise((40, 40), 80).save(path)
    return path


def spoil(file):
    blob = file.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")


def test_lists_the_index(run, fails):
    names = [line.split()[0] for line in run("list")]
    assert names == ["entry", *read_index()]
    header, *lines = run("list", "swin_tiny")
    assert header.split() == ["entry", "parameters", "multiply-adds", "input", "status", "results"]
    assert lines[0].startswith("swin_tiny_patch4_window7_224_fdconv.ms_in1k ")
    assert "34.32 M (+21 %)  4.60 G (+2 %)  224x224  converted, not trained  -" in lines[0]
    assert [line.split()[0] for line in run("list", "*50*tv_in1k")] == [
        "entry",
        "resnet50_fdconv.tv_in1k",
        "resnext50_32x4d_fdconv.tv_in1k",
        "wide_resnet50_2_fdconv.tv_in1k",
    ]
    assert "39.4 box AP (paper)" in run("list", "resnet50_fdconv.tv_in1k")[1]
    found = json.loads("\n".join(run("list", "resnet18", "--json")))
    assert found[ENTRY]["costs"]["parameters"] == read_index()[ENTRY].costs.parameters
    assert "no entry matches 'nope'" in fails("list", "nope")


def test_shows_a_card(run, fails):
    lines = run("show", ENTRY)
    assert lines[0] == f"# {ENTRY}"
    assert any("Converted, not trained" in line for line in lines)
    for name, entry in (
        ("resnet10s_fdconv", "resnet10s_fdconv.fashion_mnist"),
        ("resnet50_fdconv", "resnet50_fdconv.a1_in1k"),
    ):
        assert run("show", name)[0] == f"# {entry}"
    assert "its card is on the Hub, in timm/resnet18.tv_in1k" in fails("show", "resnet18.tv_in1k")
    assert "no such model; did you mean resnet18_fdconv" in fails("show", "resnet18_fdconf")


@pytest.mark.parametrize(
    ("flags", "near"),
    [
        (["list", "--jsno"], "--json"),
        (["publish", "--run", "r", "--repo", "me/m", "--licence=mit"], "--license"),
        (["validate", "--model", "m", "--dataset", "d", "--batchsize", "8"], "--batch-size"),
        (["benchmark", "--modells", "m"], "--models"),
    ],
)
def test_suggests_a_flag(flags, near, capsys):
    with pytest.raises(SystemExit):
        main(flags)
    assert f"; did you mean {near}?" in capsys.readouterr().err


def test_every_command_has_its_main():
    for command in COMMANDS.values():
        tree = ast.parse(Path(cli.__file__).with_name(f"{command.module}.py").read_text(encoding="utf-8"))
        assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("command", "library", "extra"),
    [
        ("validate", "accelerate", "train"),
        *(("export", name, "export") for name in ("onnx", "onnxscript", "onnxruntime")),
        *(("visualize", name, "analysis") for name in ("jinja2", "matplotlib.figure", "scipy.stats")),
    ],
)
def test_a_missing_library_is_named_with_the_extra_that_has_it(fails, monkeypatch, command, library, extra):
    ours = [name for name in sys.modules if name.startswith("fdconv_zoo.analysis")]
    for module in (f"fdconv_zoo.cli.{command}", "fdconv_zoo.store.onnx", *ours):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    flags = ["--model", "m", *(["--output", "m.onnx"] if command == "export" else [])]
    assert f"fdconv-zoo {command} needs {library}: pip install 'fdconv-zoo[{extra}]'" in fails(command, *flags)


def test_help_is_shown_from_files_that_name_all_flags(run):
    pytest.importorskip("shtab")
    for name, text in load_script("write_help").format_helps().items():
        # Versions of Python break lines in other places.
        assert " ".join(run(name, "--help")).split() == text.split(), f"{name}: run `make help`"


def test_completion_knows_commands_and_flags(run):
    pytest.importorskip("shtab")
    script = "\n".join(run("completion", "bash"))
    for name, flag in (("train", "--grad-accum"), ("benchmark", "--count-only"), ("verify", "--repair")):
        (line,) = [line for line in script.splitlines() if line.startswith(f"_shtab_fdconv_zoo_{name}_option_strings=")]
        assert flag in line.rstrip(")").split()


def test_names():
    assert timm_name("convnext_tiny_fdconv.fb_in22k.imagenet") == "convnext_tiny_fdconv.fb_in22k"
    assert timm_name("runs/mine") == "runs/mine"
    assert find_weights(ENTRY).repo_id == REPO
    assert find_weights("resnet18_fdconv").repo_id == "timm/resnet18.a1_in1k"
    assert find_weights("resnet18.tv_in1k", "v1").revision == "v1"
    ours = find_weights("hf-hub:ada/model@v1", "v1")
    assert (ours.repo_id, ours.revision, ours.with_config) == ("ada/model", "v1", True)


def test_wrong_names_are_refused(fails):
    assert "has no weights tagged nope; its tags are a1_in1k" in fails("download", "resnet18_fdconv.nope")
    assert "its weights come with the package" in fails("download", "resnet10s_fdconv.fashion_mnist")
    assert "name one revision" in fails("download", "hf-hub:ada/model@v1", "--revision", "v2")
    assert "not a valid name on the Hub" in fails("download", "hf-hub:../../etc/passwd")
    for revision in ("../../../outside", "/tmp/outside", "..\\outside"):
        assert "not a valid revision" in fails("download", ENTRY, "--revision", revision)


def test_downloads_ahead_of_time(weights, run, monkeypatch):
    (path,) = run("download", ENTRY)
    assert path == hf_hub_download(REPO, "model.safetensors")
    assert {name.rpartition("/")[2] for name in weights.cached()} == {"model.safetensors"}
    with weights.offline():
        assert run("download", ENTRY) == [path]
        assert run("download", "resnet18.tv_in1k") == [path]
    assert run("download", f"hf-hub:{REPO}") == [path]
    assert {name.rpartition("/")[2] for name in weights.cached()} == {"model.safetensors", "config.json"}


def test_downloads_a_revision_and_older_files(hub, run, fails):
    hub.add_repo(REPO, {"pytorch_model.bin": b"first"})
    commit = hub.repos[REPO].find("main").oid
    hub.commit(REPO, {"pytorch_model.bin": b"second"})
    (path,) = run("download", ENTRY, "--revision", commit)
    assert Path(path).read_bytes() == b"first"
    (path,) = run("download", ENTRY)
    assert Path(path).read_bytes() == b"second"
    assert "it has no revision 'v9'" in fails("download", ENTRY, "--revision", "v9")


def test_downloads_from_a_private_repository(hub, run, fails):
    hub.add_repo("ada/model", {"model.safetensors": WEIGHTS, "config.json": b"{}"}, private=True)
    assert "log in with `hf auth login`" in fails("download", "hf-hub:ada/model")
    hub.add_repo("ada/asked", {"model.safetensors": WEIGHTS, "config.json": b"{}"}, gated=True)
    message = fails("download", "hf-hub:ada/asked")
    assert f"ask for access on {hub.url}/ada/asked and log in with `hf auth login`" in message
    hub.log_in("hf_wrong")
    assert "it rejected your token as invalid or expired" in fails("download", "hf-hub:ada/model")
    hub.log_in(hub.add_user("ada"))
    (path,) = run("download", "hf-hub:ada/model")
    assert Path(path).read_bytes() == WEIGHTS


def test_says_why_a_download_fails(hub, fails):
    assert "it does not exist, or is private: check its name" in fails("download", ENTRY)
    hub.add_repo(REPO, {"weights.npz": WEIGHTS})
    assert "it has no pytorch_model.bin at revision 'main'" in fails("download", ENTRY)
    with hub.offline():
        assert f"not in the cache {hub.cache}, and offline mode is on: unset HF_HUB_OFFLINE" in fails("download", ENTRY)
    hub.fail(Fault.server_error(), times=None)
    message = fails("download", ENTRY)
    assert f"{hub.url}/{REPO}/resolve/main/model.safetensors answered with status 503: try again" in message
    hub.stop()
    assert f"{hub.url} cannot be reached" in fails("download", ENTRY)


def test_a_damaged_download_does_not_stay(weights, run, fails):
    weights.fail(Fault.wrong_content())
    assert "model.safetensors arrived damaged and was removed" in fails("download", ENTRY)
    assert not weights.cached()
    (path,) = run("download", ENTRY)
    assert Path(path).read_bytes() == WEIGHTS


def test_a_damaged_download_does_not_stay_where_the_caches_name_is_a_detour(weights, fails, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", f"{weights.cache}/../{weights.cache.name}")
    weights.fail(Fault.wrong_content())
    assert "model.safetensors arrived damaged and was removed" in fails("download", ENTRY)
    assert not list(weights.cache.rglob("blobs/*"))


def test_a_truncated_download_does_not_stay(weights, run, fails):
    weights.fail(Fault.truncated_file())
    assert "a file arrived incomplete: try again" in fails("download", ENTRY)
    assert not weights.cached()
    assert Path(*run("download", ENTRY)).read_bytes() == WEIGHTS


def test_no_signature_reaches_a_message():
    error = OSError("Max retries exceeded with url: /cdn/model?Signature=secret&Key=secret (caused by nothing)")
    assert "secret" not in explain(error)
    assert "(caused by nothing)" in explain(error)


def test_no_password_of_a_mirror_reaches_a_message(fails, monkeypatch, hub):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://user:SECRET@127.0.0.1:9")
    hub.stop()
    message = fails("download", ENTRY)
    assert "http://127.0.0.1:9 cannot be reached" in message
    assert "SECRET" not in message


def test_a_full_disk_is_named(weights, fails, monkeypatch):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device", "/cache")

    monkeypatch.setattr("fdconv_zoo.store.fetch.hf_hub_download", no_space)
    assert "No space left on device: /cache" in fails("download", ENTRY)


def test_verifies_cached_files(weights, run, fails):
    assert run("verify") == ["no file of the zoo is in the cache"]
    assert f"no file of {REPO} is in the cache; get it with `download {ENTRY}`" in fails("verify", ENTRY)
    run("download", f"hf-hub:{REPO}")
    commit = weights.repos[REPO].find("main").oid[:8]
    good = [f"{REPO}@{commit} {name}: good" for name in ("config.json", "model.safetensors")]
    assert run("verify", ENTRY) == [*good, "2 files are good"]
    assert run("verify") == [*good, "2 files are good"]
    with weights.offline():
        *lines, remark, total = run("verify")
    assert (lines, total) == (good, "2 files are good")
    assert remark.startswith("not checked against the Hub: ")


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_names_and_repairs_damaged_files(weights, run, capsys, name, online):
    path = hf_hub_download(REPO, name)
    content = Path(path).read_bytes()
    spoil(weights.cache / path)
    if not online:
        with weights.offline(), pytest.raises(SystemExit):
            main(["verify", ENTRY])
    else:
        with pytest.raises(SystemExit):
            main(["verify", ENTRY])
    captured = capsys.readouterr()
    assert f"{name}: its content differs from the Hub's" in captured.out
    assert "1 of 1 files are damaged; --repair downloads them again" in captured.err

    lines = run("verify", ENTRY, "--repair")
    assert lines[0].endswith(f"{name}: its content differs from the Hub's; downloaded again")
    assert Path(path).read_bytes() == content
    assert run("verify", ENTRY)[-1] == "1 files are good"


def test_a_repair_that_fails_leaves_no_damaged_file(weights, fails):
    path = hf_hub_download(REPO, "model.safetensors")
    spoil(weights.cache / path)
    weights.fail(Fault.wrong_content())
    assert "arrived damaged and was removed" in fails("verify", ENTRY, "--repair")
    assert not weights.cached()


def test_missing_and_foreign_files_are_named(weights, run, capsys):
    path = weights.cache / hf_hub_download(REPO, "model.safetensors")
    path.resolve().unlink()
    (path.parent / "extra.bin").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        main(["verify", ENTRY])
    captured = capsys.readouterr()
    assert "extra.bin: the Hub has no such file in this revision" in captured.out
    assert "model.safetensors: its content is missing" in captured.out
    assert "2 of 2 files are damaged" in captured.err


def test_a_link_out_of_the_cache_is_not_followed_when_removing(weights, tmp_path, capsys):
    path = weights.cache / hf_hub_download(REPO, "model.safetensors")
    outside = tmp_path / "outside"
    outside.write_bytes(b"keep me")
    path.unlink()
    path.symlink_to(outside)
    main(["verify", ENTRY, "--repair"])
    assert "downloaded again" in capsys.readouterr().out
    assert outside.read_bytes() == b"keep me"
    assert path.read_bytes() == WEIGHTS


def test_predicts(folder, image, run, fails, hub):
    (line,) = run("predict", "--model", folder, "--top", 2, "--device", "cpu", image)
    assert line.startswith(f"{image}: ")
    assert "cat" in line
    assert "dog" in line
    hub.add_repo("ada/pets", {file.name: file.read_bytes() for file in folder.iterdir()})
    assert run("predict", "--model", "hf-hub:ada/pets", "--top", 2, "--device", "cpu", image) == [line]
    assert "does not exist, or is private" in fails("predict", "--model", "hf-hub:ada/none", image)
    assert "no such file or folder" in fails("predict", "--model", folder, image.with_name("none.png"))
    assert "--model runs/mine: no such folder" in fails("predict", "--model", "runs/mine", image)
    image.write_bytes(b"no image")
    assert "1 files were left out" in fails("predict", "--model", folder, "--device", "cpu", image)
    assert "cannot be built" in fails("predict", "--model", ENTRY, image)


def test_the_sample_needs_the_extra(folder, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "fdconv_zoo.data.loading", None)
    monkeypatch.setitem(sys.modules, "fdconv_zoo.data.sources", None)
    assert "pip install 'fdconv-zoo[train]'" in fails("predict", "--model", folder, "--device", "cpu", "--sample", 1)


def test_predicting_needs_no_extra_and_the_process_ends_well(folder, image):
    code = "import sys; sys.modules['datasets'] = None; from fdconv_zoo.__main__ import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "predict", "--model", str(folder), "--device", "cpu", str(image)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{image}: ")


def test_what_was_downloaded_is_what_timm_loads(hub, run, tmp_path):
    plain = timm.create_model("resnet18")
    timm.models.save_for_hf(plain, tmp_path, safe_serialization=True)
    hub.add_repo(REPO, {file.name: file.read_bytes() for file in tmp_path.glob("*.*") if file.is_file()})
    run("download", ENTRY)
    with hub.offline():
        model = timm.create_model(ENTRY, pretrained=True)
    assert torch.equal(model.fc.weight, plain.fc.weight)
