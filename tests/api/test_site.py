# SPDX-License-Identifier: Apache-2.0
"""The documentation builds without a warning, can be searched, and fetches nothing when it is opened."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
# What a browser fetches without being asked: not <a href>.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*?\bsrc=["']?([^"'\s>]+)|<link\b[^>]*?\bhref=["']?([^"'\s>]+)""",
    re.IGNORECASE,
)
_STYLES = re.compile(r"""(?:@import\s+(?:url\()?|url\()\s*["']?([^"')\s]+)""", re.IGNORECASE)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("material") is None, reason="mkdocs-material is not installed"
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=_ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def _is_elsewhere(address: str) -> bool:
    return address.startswith("//") or re.match(r"(?!data:)[a-z][a-z0-9+.-]*:", address) is not None


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    fetched = {
        page.name: ["".join(found) for found in _FETCHED.findall(page.read_text(encoding="utf-8"))]
        for page in site.rglob("*.html")
    }
    fetched |= {
        sheet.name: _STYLES.findall(sheet.read_text(encoding="utf-8")) for sheet in site.rglob("*.css")
    }
    assert sum(map(len, fetched.values())) > len(fetched)
    assert {
        (page, address) for page, found in fetched.items() for address in found if _is_elsewhere(address)
    } == set()


def test_pages_can_be_searched(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    pages = {entry["location"].split("#")[0] for entry in index["docs"]}
    assert {"howto/aimet.html", "reference.html", "errors.html", "glossary.html"} <= pages
    # For pages that are opened from the folder.
    assert (site / "search" / "search_index.js").is_file()
    assert (site / "scripts" / "iframe-worker.js").is_file()


def test_tables_are_tables(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert "| --- |" not in page.read_text(encoding="utf-8"), page.name
