"""The documentation: its blocks run, its links lead somewhere, its commands have the flags they name."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from run_blocks import LANGUAGES, REASONS, ROOT, read_blocks, run_page

DOCS, HELP = ROOT / "docs", ROOT / "fdconv_zoo" / "cli" / "help"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINKED = [
    *PAGES,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "app" / "README.md",
    ROOT / "models" / "README.md",
]

# Pages whose Python blocks other tests run, section by section: they check what the blocks compute, or give them the
# data that they take.
BY_SECTION = {
    "docs/analysis.md": ("test_visualize.py", "test_diagnose.py"),
    "docs/learning_rates.md": ("test_param_groups.py", "test_watch.py"),
}

# What a fence may be, beside what is run. Nobody copies these into a shell.
SHOWN = {"text", "yaml", "json", "bibtex", "html", "toml", "ini"}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def languages(page: Path) -> tuple[str, ...]:
    """Of the blocks to run here."""
    wanted = ("bash",) if name(page) in BY_SECTION else LANGUAGES
    there = {block.language for block in read_blocks(page) if not block.not_run}
    return tuple(language for language in wanted if language in there)


@pytest.mark.parametrize("page", [page for page in PAGES if languages(page)], ids=name)
def test_blocks_run(page):
    result = run_page(page, languages(page), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("document", BY_SECTION)
def test_sections_are_run_by_other_tests(document):
    page = ROOT / document
    tests = "".join((ROOT / "tests" / file).read_text(encoding="utf-8") for file in BY_SECTION[document])
    assert page.relative_to(DOCS).as_posix() in tests
    headings = {block.heading for block in read_blocks(page) if block.language == "python"}
    assert {heading for heading in headings if f'"{heading}"' not in tests} == set()


def test_a_failing_block_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nfrom pathlib import Path\n\ntext = 'x'\n```\n- item\n\n    ```bash\n    echo made > file\n    ```\n"
        "<!-- not run: needs a GPU -->\n```bash\nexit 3\n```\n"
        "```python\nassert Path('file').read_text() == 'made\\n' and text == 'x'\nraise KeyError('seen')\n```\n"
    )
    result = run_page(page, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode
    assert "KeyError: 'seen'" in result.stdout
    assert 'page.md", line 17' in result.stdout
    page.write_text("```bash\nfalse | true\necho not reached\n```\n")
    result = run_page(page, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode
    assert "page.md:2" in result.stdout
    assert "\nnot reached" not in result.stdout.replace("echo not reached", "")


def test_blocks_are_left_out_for_few_reasons():
    written = [page for page in PAGES if page.parent.name != "reports"]  # those are made by scripts/gpu_report.py
    blocks = [(page, block) for page in written for block in read_blocks(page)]
    unknown = {(name(p), b.line, b.language) for p, b in blocks if b.language not in {*LANGUAGES, *SHOWN}}
    assert unknown == set(), "name the language of a fence: what is no python or bash is not run"
    reasons = Counter(next((r for r in REASONS if b.not_run.startswith(r)), b.not_run) for _, b in blocks if b.not_run)
    assert set(reasons) <= set(REASONS)
    runs = [b for p, b in blocks if b.language in LANGUAGES and not b.not_run]
    # What is not run is mostly an installation, at the head of a page.
    assert len(runs) >= 1.5 * (sum(reasons.values())), reasons


def headings(text: str) -> set[str]:
    """The anchors of a page, as GitHub and the site make them."""
    text = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.M | re.S)
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ +(.+?) *$", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^( *)```.*?^\1```|`[^`\n]*`", "", text, flags=re.M | re.S)
    for target in re.findall(r"\]\(\s*([^\s()]+)\s*\)", prose):
        if "://" in target:
            assert re.fullmatch(r"https?://[\w.-]+\.\w+(:\d+)?(/[^\s\"<>]*)?", target), target
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        if anchor:
            assert anchor in headings(found.read_text(encoding="utf-8")), target


def commands(page: Path) -> list[tuple[str, str]]:
    """The commands of the command line in code, also of what is not run: name, and the rest of the line."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"^ *(?:[A-Z_]+=\S+ )*(?:srun )?fdconv-zoo ([a-z]+)\b([^\n]*)", text, re.M)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_have_the_flags_that_are_named(page):
    for command, rest in commands(page):
        if not (HELP / f"{command}.txt").exists():
            continue
        # `compare` hands the flags of a recipe on to the command that trains.
        readers = [command, *(["train", "segment", "detect"] if command == "compare" else [])]
        texts = [(HELP / f"{reader}.txt").read_text(encoding="utf-8") for reader in readers]
        known = set(re.findall(r"--[a-z][\w-]*", " ".join(texts)))
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", rest.partition("  #")[0]))
        assert named <= known, (command, named - known)


def test_the_site_has_all_pages():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def files(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [file for part in (entry.values() if isinstance(entry, dict) else entry) for file in files(part)]

    named = files(site["nav"])
    assert len(named) == len(set(named))
    made = {"app.md", "changelog.md", "contributing.md", "models.md"}  # of files outside docs/: scripts/site_hooks.py
    pages = [*PAGES[1:], *DOCS.rglob("*.ipynb")]
    assert set(named) - made == {page.relative_to(DOCS).as_posix() for page in pages}


def test_the_site_builds_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocs_jupyter")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for page in tmp_path.rglob("*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text(encoding="utf-8"))
        fetched = [tag for tag in tags if re.search(r'(?:src|href)="?(?:https?:)?//', tag)]
        assert fetched == []
