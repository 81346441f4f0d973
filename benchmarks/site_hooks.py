"""mkdocs hooks: links from docs/ to other files of the repository lead to pages of the site.

On GitHub a page links to ``../examples/pinn.py`` as it is. The site gets a page with the script's text, and a
copy of a JSON file.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):\s*(?=<code>)")
FENCE = {".py": "python", ".sh": "sh"}


def outside(page: str, target: str) -> str | None:
    """Path in the repository of a link that leaves docs/; None for other links."""
    if re.match(r"[a-z]+:", target):
        return None
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith("docs/") or not (ROOT / path).is_file() else path


def uri(path: str) -> str:
    """Where the site has a file of the repository."""
    folder, name = posixpath.split(path)
    stem, ext = posixpath.splitext(name)
    place = posixpath.join("repository", folder, stem if ext in (*FENCE, ".md") else name)
    return f"{place}.md" if ext in (*FENCE, ".md") else place


def on_files(files: Files, config: Any) -> Files:
    """Add a page or a copy of every file that a page links to."""
    paths: set[str] = set()
    for file in list(files.documentation_pages()):
        text = file.content_string
        paths |= {path for _, target, _ in LINK.findall(text) if (path := outside(file.src_uri, target))}
    for path in sorted(paths):
        ext = posixpath.splitext(path)[1]
        if ext in FENCE:
            body = (ROOT / path).read_text(encoding="utf-8").rstrip()
            text = f"# {path}\n\n```{FENCE[ext]}\n{body}\n```\n"
            files.append(File.generated(config, uri(path), content=text))
        elif ext == ".md":
            raise ValueError(f"{path}: want no link from docs/ to a page outside of it")
        else:
            files.append(File.generated(config, uri(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to the added pages."""

    def moved(found: re.Match[str]) -> str:
        path = outside(page.file.src_uri, found[2])
        if path is None:
            return found[0]
        return found[1] + posixpath.relpath(uri(path), posixpath.dirname(page.file.src_uri) or ".") + found[3]

    return LINK.sub(moved, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Docstrings without Sphinx's roles, such as :func:."""
    return ROLE.sub("", html)
