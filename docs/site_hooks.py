"""What mkdocs calls while it builds: pages made from the code, pages from outside docs/, a last look at the site."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import write_api  # noqa: E402
import write_commands  # noqa: E402
import write_gallery  # noqa: E402
import write_metrics  # noqa: E402

PAGES: Mapping[str, Callable[[], str]] = {
    "gallery.md": write_gallery.gallery,
    "glossary.md": write_metrics.glossary,
    "reference/commands.md": write_commands.page,
    "reference/metrics.md": write_metrics.metrics,
    **{f"reference/{name}.md": lambda name=name: write_api.page(name) for name in write_api.ABOUT},
}
# Files of the repository that are pages too, by where they are on the site.
FILES = {
    "project/contributing.md": "CONTRIBUTING.md",
    "project/security.md": "SECURITY.md",
    "project/changelog.md": "CHANGELOG.md",
    "project/benchmarks.md": "benchmarks/README.md",
    "results/claims.md": "results/README.md",
    **{f"results/{folder.name}.md": f"results/{folder.name}/README.md" for folder in write_gallery.folders()},
}
LOADED = re.compile(  # what a browser fetches by itself
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\b(?:src|srcset|data)\s*=\s*["']?(?:https?:)?//[^\s"'>]+"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon|modulepreload|prefetch|dns-prefetch))"""
    r"""[^>]*\bhref=["']?(?:https?:)?//[^\s"'>]+""",
    re.IGNORECASE,
)
STYLES = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])(?:https?:)?//[^\s"')]+""", re.IGNORECASE)


def page_of(path: str) -> str | None:
    """Give the page of the site that a file of the repository is, None if it is none."""
    if path.startswith("docs/") and path.endswith(".md"):
        return path.removeprefix("docs/")
    return next((page for page, source in FILES.items() if source in (path, f"{path}/README.md")), None)


def relinked(text: str, source: str, page: str) -> str:
    """Turn the links of a file of the repository into those of its page; what is no page is named, not linked."""
    here = PurePosixPath(source).parent.as_posix()

    def link(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, mark, anchor = target.partition("#")
        found = page_of(normpath(f"{here}/{path}"))
        if found is None:
            return f"{words} (`{normpath(f'{here}/{path}')}`)"
        return f"[{words}]({relpath(found, PurePosixPath(page).parent)}{mark}{anchor})"

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def outside(html: str) -> list[str]:
    """List what a page, or a style sheet, would load from another machine."""
    return [found[0] for pattern in (LOADED, STYLES) for found in pattern.finditer(html)]


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made, those from outside docs/, and the figures of results/."""
    from mkdocs.structure.files import File

    for page, write in PAGES.items():
        files.append(File.generated(config, page, content=write()))
    for page, source in FILES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=relinked(text, source, page)))
    for folder in write_gallery.folders():
        for figure in write_gallery.figures(folder):
            where = figure.relative_to(ROOT).as_posix()
            files.append(File.generated(config, where, abs_src_path=str(figure)))
    return files


def on_post_build(config: Any) -> None:
    """Write the index of the search for pages opened from the disk, and refuse a site that needs the network."""
    from mkdocs.exceptions import PluginError

    site = Path(config.site_dir)
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    (site / "search" / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")
    found = {
        f"{path.relative_to(site)}: {loaded}"
        for path in (*site.rglob("*.html"), *site.rglob("*.css"))
        for loaded in outside(path.read_text(encoding="utf-8"))
    }
    if found:
        raise PluginError("pages that load from other machines:\n" + "\n".join(sorted(found)))
