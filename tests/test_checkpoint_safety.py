"""Damaged and malicious weights files: our checks, and loading through timm and our entrypoints."""

import json
import os
import pickle
import shutil
import struct
from argparse import Namespace
from importlib.metadata import version

import pytest
import timm
import torch
from run_scripts import load_script
from safetensors.torch import save_file
from timm.models._hub import save_for_hf

from fdconv_zoo.errors import WeightsError
from fdconv_zoo.store import check_model_folder, check_weights_file, read_checkpoint

try:
    from fdconv_zoo.errors import ConfigError
    from fdconv_zoo.store.build import build_model, check_model_name
except ImportError:  # the scripts need timm 1.0.26
    build_model = None

NAME = "resnet10s_fdconv"
TIMM = tuple(int(part) for part in version("timm").split(".")[:3])
timm_reads_safely = pytest.mark.skipif(TIMM < (1, 0, 26), reason="this timm unpickles arbitrary objects")
timm_reads_folders = pytest.mark.skipif(TIMM < (1, 0, 26), reason="this timm does not load safetensors from a folder")


def assert_scripts_refuse(match, name=NAME, **kwargs):
    """Check train.py, validate.py and predict.py: they build their models with build_model."""
    if build_model is not None:
        with pytest.raises(ConfigError, match=match):
            build_model(name, **kwargs)


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch '{self.trace}'",)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model(NAME).eval()


@pytest.fixture
def good(model, tmp_path):
    """Write a valid safetensors file."""
    save_file(model.state_dict(), tmp_path / "good.safetensors")
    return tmp_path / "good.safetensors"


def with_header(good, change):
    """Return the file's bytes with a changed header."""
    content = good.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def overlapping(header):
    first, second = [key for key in header if key != "__metadata__"][:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]
    return header


DAMAGE = {
    "empty": (lambda good: b"", "0 bytes in all"),
    "a few bytes": (lambda good: b"\0\0\0", "3 bytes in all"),
    "cut in the header": (lambda good: good.read_bytes()[:500], "500 bytes in all, and announces a header of"),
    "cut in the data": (lambda good: good.read_bytes()[:-100], r"bytes, but layer\S+ ends at byte [\d,]+"),
    "oversized header": (
        lambda good: struct.pack("<Q", 2**62) + good.read_bytes()[8:],
        "a header of 4,611,686,018,427,387,904 bytes",
    ),
    "no header": (lambda good: struct.pack("<Q", 4) + b"{{{{", "header is not valid safetensors"),
    "overlapping data": (lambda good: with_header(good, overlapping), "offset"),
    "data without an owner": (lambda good: good.read_bytes() + b"\0" * 8, "not fully covered"),
    "a web page": (lambda good: b"<!DOCTYPE html><html></html>", "damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_safetensors(damage, good):
    make, message = DAMAGE[damage]
    good.write_bytes(make(good))
    with pytest.raises(WeightsError, match=rf"good\.safetensors.*{message}.*[gG]et the file again"):
        check_weights_file(good)
    # timm's own message does not name the file.
    with pytest.raises(WeightsError, match=rf"good\.safetensors.*{message}"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(good)))
    assert_scripts_refuse(rf"good\.safetensors.*{message}", checkpoint=str(good))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "a web page: get the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer to a file in Git LFS"),
        (b"layer1.0.conv1", "neither safetensors nor written by torch.save"),
    ],
)
def test_files_without_weights(content, message, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"a\.pth .*{message}"):
        check_weights_file(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="No such file"):
        check_weights_file(tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        check_weights_file(tmp_path)


def test_truncated_pickle(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    for size in (100, len(content) // 2, len(content) - 10):
        (tmp_path / "a.pth").write_bytes(content[:size])
        with pytest.raises(WeightsError, match=r"a\.pth is damaged"):
            check_weights_file(tmp_path / "a.pth")


def malicious_files(state, folder):
    """Write files of every format that can contain a pickle; return the file that is created if one is run."""
    trace = folder / "trace"
    malice = Malice(trace)
    torch.save({"state_dict": state, "meta": malice}, folder / "zip.pth")
    torch.save({"state_dict": state, "optimizer": malice}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(state | {"fc.bias": malice}, folder / "pytorch_model.bin")
    (folder / "pickle.pth").write_bytes(pickle.dumps(malice))
    (folder / "old_pickle.pth").write_bytes(pickle.dumps({"state_dict": malice}, protocol=2))
    return trace


def test_code_is_refused_and_not_run(model, tmp_path):
    trace = malicious_files(model.state_dict(), tmp_path)
    pickle.loads((tmp_path / "pickle.pth").read_bytes())
    assert trace.exists()  # plain unpickling runs it
    trace.unlink()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    for file in files:
        with pytest.raises(WeightsError, match=rf"{file.name} is refused: .*Nothing was run.*safetensors"):
            check_weights_file(file, model)
        with pytest.raises(WeightsError, match="refused"):
            timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)))
        assert_scripts_refuse("refused", checkpoint=str(file))
        if build_model is not None:
            with pytest.raises(WeightsError, match="refused"):
                load_script("convert").main([str(file), "--model", NAME, "--output", str(tmp_path / "out")])
    assert not trace.exists()
    assert not (tmp_path / "out").exists()
    with pytest.raises(WeightsError, match=r"asks to run \w+\.system, which is code"):
        check_weights_file(tmp_path / "zip.pth")


@timm_reads_safely
def test_timm_itself_runs_nothing(model, tmp_path):
    trace = malicious_files(model.state_dict(), tmp_path)
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(RuntimeError, match="weights_only=True blocked"):
            timm.create_model(NAME, checkpoint_path=str(file))
    assert not trace.exists()


def test_code_behind_an_allowed_name_is_not_run(tmp_path):
    # The names that trainers' logs need are replaced by placeholders, even getattr, so nothing can be called.
    trace = tmp_path / "trace"

    class Getattr:
        def __reduce__(self):
            return getattr, (Malice(trace), "trace")

    torch.save({"state_dict": {"w": torch.ones(1)}, "meta": Getattr()}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="refused"):
        read_checkpoint(tmp_path / "a.pth")
    assert not trace.exists()


@pytest.mark.parametrize("length", [128, int.from_bytes(b"PK", "little"), int.from_bytes(b"\x80\x6c", "little")])
@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
def test_the_length_of_a_header_is_not_taken_for_a_pickle_or_a_zip(tmp_path, length, name):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode().ljust(length)
    (tmp_path / name).write_bytes(struct.pack("<Q", length) + header + struct.pack("<2f", 1, 2))
    assert (tmp_path / name).read_bytes()[:2] in (b"\x80\0", b"PK", b"\x80\x6c")
    assert read_checkpoint(tmp_path / name).tensors["w"].tolist() == [1, 2]


def test_arguments_of_a_trainer_are_harmless(model, tmp_path):
    torch.save({"state_dict": model.state_dict(), "args": Namespace(lr=0.1)}, tmp_path / "a.pth")
    check_weights_file(tmp_path / "a.pth", model)
    timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "a.pth")))


CONTENT = {
    "missing": (
        lambda state: {k: v for k, v in state.items() if k != "bn1.weight"},
        r"1 missing: bn1.weight",
    ),
    "unexpected": (lambda state: state | {"bn9.weight": torch.ones(1)}, r"1 unexpected: bn9\.weight"),
    "shape": (lambda state: state | {"bn1.weight": torch.ones(5)}, r"size mismatch for bn1\.weight.*\[5\].*\[32\]"),
    "NaN": (lambda state: state | {"fc.bias": torch.full((10,), torch.nan)}, r"NaN or infinite, in fc\.bias"),
    "infinite": (lambda state: state | {"fc.bias": torch.full((10,), torch.inf)}, r"NaN or infinite, in fc\.bias"),
}


@pytest.mark.parametrize("case", CONTENT)
def test_weights_that_do_not_fit(case, model, tmp_path):
    change, message = CONTENT[case]
    file = tmp_path / "a.safetensors"
    save_file(change(model.state_dict()), file)
    with pytest.raises(WeightsError, match=rf"a\.safetensors .*{message}"):
        check_weights_file(file, model)

    def load(**kwargs):
        return timm.create_model(NAME, **kwargs)

    ways = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(file))), dict(checkpoint_path=str(file))
    for way in ways:
        if case in ("NaN", "infinite"):  # timm loads them; our scripts do not
            assert not load(**way).fc.bias.isfinite().any()
        else:
            with pytest.raises(
                RuntimeError, match=r"Error\(s\) in loading state_dict for ResNetFDConv:\n.*bn\d\.weight"
            ):
                load(**way)
    assert_scripts_refuse(message if case in ("NaN", "infinite") else r"bn\d\.weight", checkpoint=str(file))


def dtypes(kind):
    found = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    return sorted((dtype for dtype in found if kind(dtype)), key=str)


def cast(values, dtype):
    if str(dtype) == "torch.float4_e2m1fn_x2":  # torch can store it, but not compute with it
        return torch.zeros(len(values), dtype=torch.uint8).view(dtype)
    return torch.tensor(values).to(dtype)


@pytest.mark.parametrize("dtype", dtypes(lambda dtype: dtype.is_floating_point or dtype.is_complex), ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore:.*Complex.* support is experimental:UserWarning")
def test_weights_of_every_float_dtype_are_checked(dtype, bad, tmp_path):
    file = tmp_path / "a.pth"
    torch.save({"good": cast([1.0, 0.5], dtype), "other": cast([1.0, bad], dtype)}, file)
    stored = cast([1.0, bad], dtype)
    wide = torch.complex64 if dtype.is_complex else torch.float32
    if str(dtype) == "torch.float4_e2m1fn_x2" or stored.to(wide).isfinite().all():
        check_weights_file(file)  # the format has no such number
    else:
        with pytest.raises(WeightsError, match=r"NaN or infinite, in other\. "):
            check_weights_file(file)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integers_are_finite(dtype, tmp_path):
    torch.save({"w": torch.ones(3, dtype=dtype)}, tmp_path / "a.pth")
    check_weights_file(tmp_path / "a.pth")


def test_a_dtype_that_torch_cannot_convert(model, tmp_path):
    float4 = getattr(torch, "float4_e2m1fn_x2", None)
    if float4 is None:
        pytest.skip("this torch does not have the dtype")
    torch.save(model.state_dict() | {"fc.bias": cast([0.0] * 10, float4)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth does not fit .*fc\.bias"):
        check_weights_file(tmp_path / "a.pth", model)


def test_a_valid_file_passes_and_the_model_is_unchanged(model, good):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        other = {key: value + 1 if value.is_floating_point() else value for key, value in before.items()}
    save_file(other, good)
    check_weights_file(good)
    check_weights_file(good, model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    plain = timm.create_model(NAME, fdconv_layers=())
    torch.save(plain.state_dict(), good.with_name("plain.pth"))
    check_weights_file(good.with_name("plain.pth"), model)  # converted while loading


@pytest.fixture
def folder(model, tmp_path):
    """Write a valid model folder."""
    save_for_hf(model, tmp_path / "model", safe_serialization=True)
    return tmp_path / "model"


@timm_reads_folders
def test_a_valid_folder_passes(folder):
    check_model_folder(folder)
    timm.create_model(f"local-dir:{folder}", pretrained=True)
    build_model(str(folder))


CONFIGS = {
    "foreign": (
        lambda config: json.dumps(config | {"architecture": "resnet50_evil"}),
        "'resnet50_evil', which",
    ),
    "transformers": (lambda config: json.dumps({"architectures": ["BertModel"]}), "names no architecture"),
    "not text": (lambda config: json.dumps(config | {"architecture": ["resnet18"]}), "names no architecture"),
    "a list": (lambda config: "[1]", "does not contain the arguments of a model"),
    "not JSON": (lambda config: "{'architecture'", "is not JSON"),
    "deep": (lambda config: "[" * 100_000, "is not JSON"),
    "empty": (lambda config: "", "is not JSON"),
}


@timm_reads_folders
@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_of_other_models(case, folder):
    change, message = CONFIGS[case]
    path = folder / "config.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(WeightsError, match=rf"config\.json.*{message}"):
        check_model_folder(folder)
    assert_scripts_refuse(rf"config\.json.*{message}", str(folder))
    with pytest.raises(Exception):  # noqa: B017, PT011  timm raises various errors
        timm.create_model(f"local-dir:{folder}", pretrained=True)


@timm_reads_folders
def test_timm_names_an_unknown_architecture(folder):
    path = folder / "config.json"
    path.write_text(CONFIGS["foreign"][0](json.loads(path.read_text())))
    with pytest.raises(RuntimeError, match=r"Unknown model \(resnet50_evil\)"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


@timm_reads_folders
def test_damaged_folders(folder, good, tmp_path):
    shutil.copy(good, folder / "model.safetensors")
    (folder / "model.safetensors").write_bytes(good.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged"):
        check_model_folder(folder)
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert_scripts_refuse(r"model\.safetensors is damaged", str(folder))

    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has no model\.safetensors"):
        check_model_folder(folder)
    assert_scripts_refuse(r"has no model\.safetensors", str(folder))

    trace = malicious_files({}, folder)  # among them pytorch_model.bin, which timm loads next
    for load in (check_model_folder, lambda path: timm.create_model(f"local-dir:{path}", pretrained=True)):
        with pytest.raises(WeightsError, match=r"pytorch_model\.bin is refused"):
            load(folder)
    assert not trace.exists()

    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        check_model_name(str(folder))


@timm_reads_safely
def test_files_with_logs_are_for_the_converter(model, tmp_path):
    np = pytest.importorskip("numpy")
    torch.save({"state_dict": model.state_dict(), "meta": {"score": np.float64(0.4)}}, tmp_path / "a.pth")
    check_weights_file(tmp_path / "a.pth", model)
    with pytest.raises(WeightsError, match=r"a\.pth holds other objects besides its weights.*`fdconv-zoo convert`"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "a.pth")))
