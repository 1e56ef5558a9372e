"""What setup.cfg cannot say: the README as an index of packages shows it, without the repository's files beside it."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def description(readme: str, repository: str) -> str:
    """Return the README with links to files of the repository made absolute; where it has no address, without them.

    Images then go, and a link is its text.
    """

    def link(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        if repository:
            return f"{image}[{text}]({repository}/{'raw' if image else 'blob'}/main/{target})"
        return "" if image else text

    return re.sub(r"(!?)\[([^][]*)\]\(([^()\s]+)\)", link, readme)


if __name__ == "__main__":
    config = ConfigParser()
    config.read(HERE / "setup.cfg", encoding="utf-8")
    setup(
        long_description=description(
            (HERE / "README.md").read_text(encoding="utf-8"), config["metadata"].get("url", "").rstrip("/")
        ),
        long_description_content_type="text/markdown",
    )
