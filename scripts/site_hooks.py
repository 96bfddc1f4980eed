"""Hooks of `mkdocs build`: they add pages from files outside docs/, and adapt the links between files.

The files of this repository link to each other by their paths in it. On the site, a link to a file outside docs/ leads
to its page if it has one (`PAGES`), else to the repository (`repo_url` in mkdocs.yml). Without `repo_url`, only the
text of the link remains.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

CARDS = sorted(ROOT.glob("model_cards/*.md"))

# The site's page for each file outside docs/, by its path in the repository.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "app/README.md": "app.md",
    "models/README.md": "models.md",
    **{f"model_cards/{card.name}": f"cards/{card.name}" for card in CARDS},
    **{f"models/{card.stem}.yaml": f"cards/{card.name}" for card in CARDS},  # an entry is shown as its card
}

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\[\]]+)\]\((?P<target>[^\s()#]+)(?P<anchor>#[^\s()]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `PAGES` that docs/ does not have."""
    for source, uri in PAGES.items():
        if files.get_file_from_path(uri) is None:
            text = (ROOT / source).read_text(encoding="utf-8")
            front, separator, rest = text.partition("\n---\n")
            text = rest if separator and front.startswith("---\n") else text  # front matter is for the Hub only
            files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links of the site."""
    if page.file.src_uri == "models.md":
        page.meta["hide"] = ["navigation", "toc"]  # its table takes the whole width
    origin = f"docs/{page.file.src_uri}"
    if not (ROOT / origin).exists():
        origin = next(source for source, uri in PAGES.items() if uri == page.file.src_uri)

    def follow(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), found["target"]))
        if "://" in found["target"] or not (ROOT / target).exists():
            return found[0]
        uri = PAGES.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        anchor = found["anchor"] or ""
        if uri and files.get_file_from_path(uri):
            link = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
            return f"[{found['text']}]({link}{anchor})"
        if config.repo_url:
            return f"[{found['text']}]({config.repo_url.rstrip('/')}/blob/main/{target}{anchor})"
        return found["text"]

    return _LINK.sub(follow, markdown)
