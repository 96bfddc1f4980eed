"""Run the notebooks of the documentation, so that what users open is what is tested, and store their outputs.

Each runs from start to end in a kernel and an empty folder of its own, on one thread, without a network. In place of
the Hugging Face Hub there is one on this machine (`loopback_hub`), where the user `ada` is logged in.

    python tests/run_notebooks.py            # run all, and store their outputs: `make notebooks`
    python tests/run_notebooks.py docs/notebooks/look_inside.ipynb
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from loopback_hub import ConnectedHub
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def run_notebook(path: Path) -> NotebookNode:
    """Run a notebook and return it with the outputs of this run; the file stays as it is.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    options = dict(timeout=600, record_timing=False, coalesce_streams=True, kernel_name="python3")
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as home,
        ConnectedHub(Path(home)) as hub,
    ):
        client = NotebookClient(notebook, resources={"metadata": {"path": folder}}, **options)
        client.execute(env=environment(hub))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(without_bars, cell.outputs) if output.get("text") != ""]
    notebook.metadata.language_info = {"name": "python"}  # not the version of this machine
    return notebook


def environment(hub: ConnectedHub) -> dict[str, str]:
    """Return the environment of a kernel that uses this Hub."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {
        **hub.env(token=hub.add_user("ada")),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's advice to install ipywidgets
        "TQDM_DISABLE": "1",
    }
    variables.pop("MPLBACKEND", None)  # only the kernel's own shows figures
    return variables


def without_bars(output: NotebookNode) -> NotebookNode:
    """Remove the progress bars from an output; training shows them whatever TQDM_DISABLE says."""
    if output.get("name") == "stderr":
        lines = output.text.splitlines(keepends=True)
        output.text = "".join(line for line in lines if line.strip() and "%|" not in line)
    return output


def main(names: list[str]) -> None:
    """Run notebooks, and store their outputs."""
    for path in map(Path, names) if names else NOTEBOOKS:
        start = time.perf_counter()
        nbformat.write(run_notebook(path), path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
