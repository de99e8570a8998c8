"""A plot is a PNG, or a sentence about what it needs."""

import builtins

import pytest

from pretrain.benchmarks import plot
from pretrain.errors import InputError


def test_a_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    plot.write(tmp_path / "out.png", "a run", {"bare step": [0.1, 0.12, 0.11], "in the loop": [0.13]})
    assert (tmp_path / "out.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_draws_is_named_where_it_is_missing(monkeypatch):
    found = builtins.__import__

    def without(name, *rest):
        if name == "matplotlib":
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"--plot needs matplotlib: pip install 'pretrain\[plot\]'"):
        plot.check()
