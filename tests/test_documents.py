"""The Python blocks of README and docs run, in order, with their epochs cut short; their links lead somewhere."""

import re
from fnmatch import fnmatch
from pathlib import Path

import lightning as L
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks import scale
from lightning_leaky import LeakyResNetModule, TeacherDataModule
from lightning_leaky.explain.guide import SUMMARIES, TAGS_OF
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


def the_page_draws_what_it_shows(folder: Path, names: dict[str, object]) -> None:
    tags = events_of(folder).Tags()
    figures = ("energies", "path", "singular_values_of_A", "singular_values_of_W", "cost_of_identity", "step_size")
    assert {f"layers/{name}" for name in figures} <= set(tags["images"])
    assert {"layers/guide/text_summary", "layers/diagnosis/text_summary"} <= set(tags["tensors"])


def the_quantity_of_ones_own_is_logged(folder: Path, names: dict[str, object]) -> None:
    ranks = [events_of(folder).Scalars(f"effective_rank/layer_0{layer}") for layer in range(1, 6)]
    assert all(1 <= event.value <= 50 for events in ranks for event in events)
    assert [len(events) for events in ranks] == [2] * 5


def the_rule_of_ones_own_adapts(folder: Path, names: dict[str, object]) -> None:
    module = LeakyResNetModule(3, 2, width=6, num_layers=4, effective_depth=2.0, weight_decay=0.1)
    trainer = L.Trainer(max_epochs=20, callbacks=[names["adapter"]], logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=TeacherDataModule(dims=(3, 1, 2), num_train=24, num_val=10, hidden=5))
    assert (module.network.step_sizes - 0.25).abs().max() > 1e-3


# What a page shows beyond that it runs.
SHOWN = {
    "charts.md": the_page_draws_what_it_shows,
    "extending.md": the_quantity_of_ones_own_is_logged,
    "step_sizes.md": the_rule_of_ones_own_adapts,
}
TRAINED = [
    pytest.param(page, id=page.name, marks=[] if page.name == "README.md" else pytest.mark.slow)
    for page in PAGES
    if blocks(page, "python")
]


@pytest.mark.parametrize("document", TRAINED)
def test_python_blocks_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fits = []
    fit = L.Trainer.fit
    with monkeypatch.context() as patched:
        patched.setattr(L.Trainer, "fit", lambda *args, **kwargs: fits.append(fit(*args, **kwargs)))
        names = run(document)
    assert len(fits) == sum(block.count("trainer.fit(") for block in blocks(document, "python"))
    if document.name in SHOWN:
        SHOWN[document.name](tmp_path, names)


def test_relative_links_lead_somewhere():
    """Pages, pictures, and headings of pages; Sphinx looks at the docs, and nobody else at the README."""
    for document in PAGES:
        for link, heading in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", document.read_text(encoding="utf-8")):
            target = document.parent / link if link else document
            is_left_out = target.suffix == ".png" and not (ROOT / "docs" / "images").exists()  # of a source archive
            assert target.exists() or is_left_out, f"{document.name}: {link}"
            assert not heading or heading in headings(target), f"{document.name}: {link}#{heading}"


def test_no_section_stands_twice_on_a_page():
    for document in PAGES:
        found = headings(document)
        assert {heading for heading in found if found.count(heading) > 1} == set(), document.name


def headings(document: Path) -> list[str]:
    """Headings of a page as they stand in links: in lower case, with hyphens, without punctuation."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def cards() -> dict[str, str]:
    """Text of each card, by what its row of keys names."""
    page = (ROOT / "docs" / "quantities.md").read_text(encoding="utf-8")
    return {re.search(r"^\| key \| (.*) \|$", text, flags=re.MULTILINE)[1]: text for text in page.split("\n## ")[1:]}


def test_a_card_says_everything():
    rows = ["key", "formula", "unit, range", "says", "cost", "source"]
    for keys, card in cards().items():
        assert re.findall(r"^\| (\w[\w, ]*) \|", card, flags=re.MULTILINE) == rows, keys
        assert "*Pitfalls.*" in card, keys


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
