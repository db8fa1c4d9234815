"""The Python blocks of README and docs run, in order, with their epochs cut short; their links lead somewhere."""

import re
from fnmatch import fnmatch
from pathlib import Path

import lightning as L
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks import scale
from lightning_leaky.guide import SUMMARIES, TAGS_OF
from lightning_leaky.metrics.path_reader import QUANTITIES
from tests.pages import PAGES, ROOT, blocks


def run(document: Path) -> dict[str, object]:
    """Names that the blocks of a page leave behind: as a script, with two epochs and a reading at every step."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(document, "python"):
        short = re.sub(r"max_epochs=\d+", "max_epochs=2", re.sub(r",\s*log_every_n_steps=\d+", "", block))
        exec(short.replace("L.Trainer(", "L.Trainer(log_every_n_steps=1, "), namespace)
    return namespace


def events_of(folder: Path) -> EventAccumulator:
    """What the first fit of a page has logged."""
    return EventAccumulator(str(folder / "lightning_logs" / "version_0"), size_guidance={"images": 0}).Reload()


@pytest.mark.parametrize(
    "document", [document for document in PAGES if blocks(document, "python")], ids=lambda d: d.name
)
def test_python_blocks_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fits = []
    fit = L.Trainer.fit
    monkeypatch.setattr(L.Trainer, "fit", lambda *args, **kwargs: fits.append(fit(*args, **kwargs)))
    run(document)
    assert len(fits) == sum(block.count("trainer.fit(") for block in blocks(document, "python"))


def test_the_page_on_charts_draws_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(ROOT / "docs" / "charts.md")
    tags = events_of(tmp_path).Tags()
    figures = ("energies", "path", "singular_values_of_A", "singular_values_of_W", "cost_of_identity", "step_size")
    assert {f"layers/{name}" for name in figures} <= set(tags["images"])
    assert {"layers/guide/text_summary", "layers/diagnosis/text_summary"} <= set(tags["tensors"])


def test_the_quantity_of_ones_own_is_logged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(ROOT / "docs" / "extending.md")
    ranks = [events_of(tmp_path).Scalars(f"effective_rank/layer_0{layer}") for layer in range(1, 6)]
    assert all(1 <= event.value <= 50 for events in ranks for event in events)
    assert [len(events) for events in ranks] == [2] * 5


def test_the_rule_of_ones_own_adapts(tmp_path, monkeypatch, make_module, make_data, make_trainer):
    monkeypatch.chdir(tmp_path)
    adapter, module = run(ROOT / "docs" / "step_sizes.md")["adapter"], make_module()
    before = module.network.step_sizes.clone()
    make_trainer(adapter, max_epochs=20).fit(module, datamodule=make_data())
    assert (module.network.step_sizes - before).abs().max() > 1e-3


@pytest.mark.parametrize("document", PAGES, ids=lambda d: d.name)
def test_relative_links_lead_somewhere(document):
    """Pages, pictures, and headings of pages; Sphinx looks at the docs, and nobody else at the README."""
    for link, heading in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", document.read_text(encoding="utf-8")):
        target = document.parent / link if link else document
        assert target.exists(), link
        assert not heading or heading in headings(target), f"{link}#{heading}"


@pytest.mark.parametrize("document", PAGES, ids=lambda d: d.name)
def test_no_section_stands_twice_on_a_page(document):
    found = headings(document)
    assert {heading for heading in found if found.count(heading) > 1} == set()


def headings(document: Path) -> list[str]:
    """Headings of a page as they stand in links: in lower case, with hyphens, without punctuation."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def cards() -> dict[str, str]:
    """Text of each card, by what its row of keys names."""
    page = (ROOT / "docs" / "quantities.md").read_text(encoding="utf-8")
    return {re.search(r"^\| key \| (.*) \|$", text, flags=re.MULTILINE)[1]: text for text in page.split("\n## ")[1:]}


@pytest.mark.parametrize("card", cards().values(), ids=lambda card: card.splitlines()[0])
def test_a_card_says_everything(card):
    assert re.findall(r"^\| (\w[\w, ]*) \|", card, flags=re.MULTILINE) == [
        "key",
        "formula",
        "unit, range",
        "says",
        "cost",
        "source",
    ]
    assert "*Pitfalls.*" in card


def test_everything_that_is_logged_has_a_card():
    named = [pattern for keys in cards() for pattern in re.findall(r"`([^`]+)`", keys)]
    logged = [f"{name}/layer_01" for name in (*QUANTITIES, "step_size")]
    logged += [f"{name}/{end}" for name, ends in SUMMARIES.items() for end in ends]
    logged += [tag for callback in ("StepSizeAdapter", "LayerRefiner") for tag in TAGS_OF[callback]]
    logged += ["rank/lower", "rank/upper"]
    assert [key for key in logged if not any(fnmatch(key, pattern) for pattern in named)] == []


def test_the_page_on_scale_shows_what_the_formulas_say():
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    tables = scale.tables(scale.MODELS, scale.Assumptions())
    assert [title for title, table in tables.items() if table not in page] == []


def test_readme_has_python_blocks():
    assert len(blocks(ROOT / "README.md", "python")) >= 2
