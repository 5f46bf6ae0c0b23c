from __future__ import annotations

import sys

import pytest

from waypost.base.later import later


def test_nothing_is_loaded_before_the_first_use(tmp_path, monkeypatch):
    (tmp_path / "seldom_used.py").write_text("ANSWER = 42\n\nclass Oops(Exception):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = later("seldom_used")
    assert "seldom_used" not in sys.modules
    try:
        assert module.ANSWER == 42
        assert "seldom_used" in sys.modules
        assert module.Oops is sys.modules["seldom_used"].Oops
        with pytest.raises(AttributeError, match="nothing_such"):
            _ = module.nothing_such
    finally:
        sys.modules.pop("seldom_used", None)


def test_a_module_that_is_not_there_is_an_import_error():
    with pytest.raises(ImportError, match="no_such_module"):
        _ = later("no_such_module").anything
