"""The Python blocks of README and docs run, in order, with their epochs cut short; their links lead somewhere."""

import re
from pathlib import Path

import pytest

from benchmarks import scale

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if blocks(document)], ids=lambda d: d.name)
def test_python_blocks_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks(document):
        exec(re.sub(r"max_epochs=\d+", "max_epochs=2", block), namespace)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_relative_links_lead_somewhere(document):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_page_on_scale_shows_what_the_formulas_say():
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    tables = scale.tables(scale.MODELS, scale.Assumptions())
    assert [title for title, table in tables.items() if table not in page] == []


def test_readme_has_python_blocks():
    assert len(blocks(ROOT / "README.md")) >= 2
