import pytest

from pretrain.models import backends


@pytest.fixture(autouse=True)
def short_rows_have_halves(monkeypatch):
    """The rows of tests are short: what is done to the halves of causal ones is to be seen in them too."""
    monkeypatch.setattr(backends, "HALVED", 8)
