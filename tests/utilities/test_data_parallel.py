"""Which processes have copies of the same samples, which have pieces of them, and which have their own."""

import pytest
import torch

from lightning_leaky import DataParallelRank
from lightning_leaky.utilities import data_parallel
from lightning_leaky.utilities.data_parallel import probe

WIDTH = 20


def rows(count, seed):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def standings(monkeypatch):
    """How each process stands, from the ranks and rows of all."""

    def compare(ranks, matrices):
        size = len(matrices)
        monkeypatch.setattr(data_parallel, "num_processes", lambda: size)
        probes = [probe(one, one.relu()) for one in matrices]
        triples = zip(ranks, matrices, probes, strict=True)
        told = [torch.cat([torch.tensor([rank, len(one)]), seen]) for rank, one, seen in triples]
        monkeypatch.setattr(data_parallel, "from_all", lambda own: torch.stack(told))
        found = []
        for number, (rank, one) in enumerate(zip(ranks, matrices, strict=True)):
            monkeypatch.setattr(data_parallel, "number_of_process", lambda number=number: number)
            standing = DataParallelRank(rank, max(ranks) + 1).standing(len(one), probes[number])
            found.append((standing.is_copy, standing.is_first, standing.rows))
        return found

    return compare


def test_copies_count_once(standings):
    assert standings([0, 0], [rows(7, 1), rows(7, 1)]) == [(False, True, 7), (True, False, 7)]


def test_copies_may_be_rounded_otherwise(standings):
    """As matrix products of two GPUs may be."""
    narrow = rows(7, 1).bfloat16().float()
    assert standings([0, 0], [rows(7, 1), narrow]) == [(False, True, 7), (True, False, 7)]


def test_pieces_add_up(standings):
    assert standings([0, 0], [rows(4, 1), rows(3, 2)]) == [(False, True, 7), (False, False, 7)]


@pytest.mark.parametrize("place", range(20))
def test_pieces_that_differ_in_one_row_add_up(standings, place):
    other = rows(20, 1)
    other[place] = -other[place]
    assert standings([0, 0], [rows(20, 1), other]) == [(False, True, 40), (False, False, 40)]


def test_other_ranks_have_their_own_samples(standings):
    """Even if these are the same: a data set may repeat itself."""
    four = [rows(5, 1), rows(5, 1), rows(5, 1), rows(2, 3)]
    expected = [(False, True, 5), (True, False, 5), (False, True, 7), (False, False, 7)]
    assert standings([0, 0, 1, 1], four) == expected


def test_a_process_without_rows_takes_nothing_from_others(standings):
    assert standings([0, 0, 0], [rows(0, 1), rows(6, 1), rows(6, 1)]) == [
        (False, True, 6),
        (False, False, 6),
        (True, False, 6),
    ]


@pytest.mark.parametrize(("rank", "size"), [(1, 1), (-1, 1), (0, 2), (0, 0)])
def test_a_rank_is_one_of_so_many(rank, size):
    with pytest.raises(ValueError, match=f"the 1 processes, got rank={rank} and size={size}"):
        DataParallelRank(rank, size)
