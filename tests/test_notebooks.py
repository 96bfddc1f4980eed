"""The notebooks of the documentation: they run, they show what is stored in them, and nothing of the machine."""

import copy
import re

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from run_notebooks import NOTEBOOKS, ROOT, run_notebook, without_bars

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# A cell with this tag trains, measures, or prints a version or a commit: its numbers are not those of another machine.
VARIES = "varies"


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: NotebookNode) -> list[object]:
    """What a cell shows: text, and the kinds of pictures."""
    result = []
    for output in cell.outputs:
        if output.get("name") == "stderr":  # a warning of another version; what is stored has none
            continue
        data = output.get("data", {})
        text = output.get("text") or data.get("text/plain", "")
        if VARIES in cell.metadata.get("tags", ()):
            text = re.sub(r"\b[0-9a-f]{40}\b|\d[\d,]*(\.\d+)?(e[+-]\d+)?", "N", text)
            text = re.sub(r"\s+", " ", text)  # columns are as wide as their numbers
        result.append((output.output_type, text, sorted(set(data) - {"text/plain"})))
    return result


@each_notebook
def test_runs_and_shows_what_is_stored(path):
    stored, fresh = nbformat.read(path, as_version=4), run_notebook(path)
    for old, new in zip(code_cells(stored), code_cells(fresh), strict=True):
        assert shown(new) == shown(old), f"{old.source}\n\nrun `make notebooks`"
    assert [cell.execution_count for cell in code_cells(stored)] == list(range(1, len(code_cells(stored)) + 1))
    assert stored.metadata == fresh.metadata


def test_changed_outputs_are_seen():
    cell = nbformat.v4.new_code_cell(
        outputs=[nbformat.v4.new_output("stream", text="loss 2.80 to 1.24 after 3 epochs")]
    )
    other = copy.deepcopy(cell)
    other.outputs[0].text = "loss  2.9 to 1.24 after 30 epochs"
    assert shown(cell) != shown(other)
    for varying in (cell, other):
        varying.metadata["tags"] = [VARIES]
    assert shown(cell) == shown(other)
    other.outputs[0].text = "loss 2.80 to nan after 3 epochs"
    assert shown(cell) != shown(other)
    other.outputs = []
    assert shown(cell) != shown(other)


def test_bars_are_left_out_and_warnings_are_not():
    bars = "\n epoch 1:   0%|    | 0/2\repoch 1: 100%|####| 2/2\nUserWarning: seen\n"
    output = nbformat.v4.new_output("stream", name="stderr", text=bars)
    assert without_bars(output).text == "UserWarning: seen\n"


@each_notebook
def test_stored_files_are_clean(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert not re.findall(r"/(?:root|home|tmp|Users|work|content|var)/|127\.0\.0\.1|localhost", text)
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        for output in cell.get("outputs", ()):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
    kinds = {kind for cell in code_cells(notebook) for *_, kinds in shown(cell) for kind in kinds}
    assert kinds & {"image/png", "image/jpeg"}


@each_notebook
def test_the_first_cell_installs_what_is_missing(path, tmp_path, monkeypatch):
    """From the package index, as on Colab, or from the clone that the notebook is in."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    first = code_cells(nbformat.read(path, as_version=4))[0]
    code = TransformerManager().transform_cell(first.source)
    monkeypatch.setenv("PATH", "")  # one of them changes it
    installed = []

    class Shell:
        def run_line_magic(self, magic, line):
            installed.append(f"{magic} {line.format(**scope)}")

    scope: dict[str, object] = {"get_ipython": Shell}
    exec(code, scope)
    assert installed == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for place in (tmp_path, path.parent):
        monkeypatch.chdir(place)
        exec(code, scope)
    elsewhere, in_clone = installed
    name, extras = re.fullmatch(r'pip install --quiet "([\w-]+)\[([\w,]+)\]"', elsewhere).groups()
    assert name == project["name"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert in_clone == f'pip install --quiet "../..[{extras}]"'
    assert (path.parent / ".." / "..").resolve() == ROOT
