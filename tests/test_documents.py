"""The Python blocks of README and docs run, in order, with their epochs cut short; their links lead somewhere."""

import re
from pathlib import Path
from pkgutil import resolve_name

import lightning as L
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks import scale
from docs.cards import PAGE, RECORDS, ROWS, heading_of, with_cards
from lightning_leaky import LeakyResNetModule, Quantity, Summary, TeacherDataModule
from lightning_leaky.explain.guide import TAGS_OF
from tests.pages import PAGES, ROOT, blocks


def run(document: Path) -> dict[str, object]:
    """Names that the blocks of a page leave behind: as a script, with two epochs and a reading at every step."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(document, "python"):
        short = re.sub(r"max_epochs=\d+", "max_epochs=2", re.sub(r",\s*log_every_n_steps=\d+", "", block))
        exec(short.replace("L.Trainer(", "L.Trainer(log_every_n_steps=1, "), namespace)
    return namespace


def events_of(folder: Path, fit: int = 0) -> EventAccumulator:
    """What the first fit of a page has logged, or a later one."""
    return EventAccumulator(str(folder / "lightning_logs" / f"version_{fit}"), size_guidance={"images": 0}).Reload()


def the_page_draws_what_it_shows(folder: Path, names: dict[str, object]) -> None:
    tags = events_of(folder).Tags()
    figures = ("energies", "path", "singular_values_of_A", "singular_values_of_W", "cost_of_identity", "step_size")
    assert {f"layers/{name}" for name in figures} <= set(tags["images"])
    assert {"layers/guide/text_summary", "layers/diagnosis/text_summary"} <= set(tags["tensors"])


def the_quantity_of_ones_own_is_logged(folder: Path, names: dict[str, object]) -> None:
    """And the page's YAML, which names it in a module, is that of a monitor."""
    keys = [f"effective_rank/{end}" for end in (*(f"layer_0{layer}" for layer in range(1, 6)), "min")]
    logged = [events_of(folder).Scalars(f"{prefix}{key}") for prefix in ("", "val_") for key in keys]
    assert all(1 <= event.value <= 50 for events in logged for event in events)
    assert [len(events) for events in logged] == [2] * 12
    assert events_of(folder, 1).Tags()["histograms"] == ["last_layer/distances"]
    page = ROOT / "docs" / "extending.md"
    (folder / "my_quantities.py").write_text(blocks(page, "python")[0], encoding="utf-8")
    (callback,) = yaml.safe_load(blocks(page, "yaml")[0])["trainer"]["callbacks"]
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(folder)
        names["EnergyMonitor"](**callback["init_args"])


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
            is_picture = target.suffix in (".png", ".svg", ".ipynb")  # a source archive leaves them out
            is_left_out = is_picture and not (ROOT / "docs" / "images").exists()
            assert target.exists() or is_left_out, f"{document.name}: {link}"
            assert not heading or heading in headings(target), f"{document.name}: {link}#{heading}"


def test_names_of_the_package_exist():
    """Sphinx looks up those of the reference, and the blocks of Python run."""
    for document in (*PAGES, *(ROOT / "examples").glob("*.yaml")):
        for name in re.findall(r"\blightning_leaky(?:\.\w+)+", document.read_text(encoding="utf-8")):
            assert resolve_name(name), f"{document.name}: {name}"


def test_users_import_from_the_top_or_from_a_public_namespace():
    examples = [path for pattern in ("*.py", "*.ipynb") for path in (ROOT / "examples").glob(pattern)]
    for document in (*PAGES, *examples):
        rooms = re.findall(r"\bfrom lightning_leaky\.([\w.]+) import", document.read_text(encoding="utf-8"))
        assert set(rooms) <= {"functional", "metrics", "plotting", "report", "refining", "dropping"}, document.name


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
    """Text of each card, by its heading."""
    return {text.partition("\n")[0]: text for text in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]}


def test_a_card_says_everything():
    for heading, card in cards().items():
        rows = re.findall(r"^\| (\w+) \| \S.* \|$", card, flags=re.MULTILINE)
        assert rows == list(ROWS), f"{heading}: fill in the rows of its card in docs/quantities.md"
        assert re.search(r"\*Pitfalls\.\* \S", card), heading


def test_the_cards_say_what_the_records_know():
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_cards(page), "records have changed: run `python -m docs.cards` and look at docs/quantities.md"


def test_a_record_without_a_card_gets_one_to_fill_in():
    page = PAGE.read_text(encoding="utf-8")
    least = Summary("min", "Least over the layers.", lambda values, step_sizes, effective_depth: values.amin())
    record = Quantity("own", lambda sums: sums.step_sizes, title="own number", says="One line.", summaries=(least,))
    longer = with_cards(page, (*RECORDS, record))
    card = longer.removeprefix(page)
    assert card.startswith("\n## Own number\n")
    assert {"| key | `own/layer_*`, `own/min` |", "| unit | none |", "| says | One line. |"} <= set(card.splitlines())
    assert with_cards(longer, (*RECORDS, record)) == longer


def test_what_is_written_by_hand_stays():
    page = PAGE.read_text(encoding="utf-8")
    by_hand = page.replace("| cost | none |", "| cost | some |")
    assert with_cards(by_hand.replace("| unit | energy |", "| unit | another |", 1)) == by_hand != page


def test_everything_that_is_logged_has_a_card():
    """A record by its title, another tag in any row."""
    found = cards()
    assert {heading_of(record) for record in RECORDS} <= set(found)
    named = [pattern for card in found.values() for pattern in re.findall(r"`([^`]+)`", card)]
    tags = [tag for name in ("EnergyMonitor", "StepSizeAdapter", "LayerRefiner") for tag in TAGS_OF[name]]
    assert [tag for tag in tags if tag not in named] == []


def test_the_page_on_scale_shows_what_the_formulas_say():
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    tables = scale.tables(scale.MODELS, scale.Assumptions())
    assert [title for title, table in tables.items() if table not in page] == []


def test_readme_has_python_blocks():
    assert len(blocks(ROOT / "README.md", "python")) >= 2
