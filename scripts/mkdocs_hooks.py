"""MkDocs hooks: pages of the site that lie outside docs/, and links to files of the repository.

Every page is plain Markdown that also reads well in the repository browser, where links are paths between files. On the
site a link to another page stays a link between pages, and a link to any other file leads to the repository.

In a table, GitHub's Markdown wants a pipe in code escaped; Python-Markdown shows the escape.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "index.md": "README.md",
    "examples.md": "examples/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages from outside docs/: name on the site and file in the repository."""
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[#)])")
_ROW = re.compile(r"^\|.*", re.MULTILINE)
_CODE = re.compile(r"`[^`]+`")
_SCHEME = re.compile(r"[a-z]+:")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/."""
    for name, source in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite relative links and pipes. A link to a missing file is left as it is, and fails the strict build."""
    own = page.file.src_uri
    folder = posixpath.dirname(PAGES.get(own, f"docs/{own}"))
    pages = {f"docs/{file.src_uri}": file.src_uri for file in files.documentation_pages()}
    pages |= {source: name for name, source in PAGES.items()}

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        if _SCHEME.match(match[1]):
            return match[1]
        if target in pages:
            return posixpath.relpath(pages[target], posixpath.dirname(own))
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{config.repo_url}/{kind}/main/{target}" if (ROOT / target).exists() else match[1]

    def unescaped(row: re.Match[str]) -> str:
        return _CODE.sub(lambda code: code[0].replace(r"\|", "|"), row[0])

    return _ROW.sub(unescaped, _LINK.sub(rewritten, markdown))
