"""Things by name, of this package and of others."""

import pytest

from soir_qdrant.errors import ConfigError
from soir_qdrant.registry import Registry


class Point:
    """An entry point, as importlib.metadata has them."""

    def __init__(self, name, load):
        self.name, self.value, self.load = name, f"another_package:{name}", load


@pytest.fixture
def shapes(monkeypatch):
    loaded = []
    offered = [Point("star", lambda: loaded.append("star") or "a star"), Point("broken", lambda: 1 / 0)]
    groups = {"soir_qdrant.shapes": offered}
    monkeypatch.setattr("soir_qdrant.registry.entry_points", lambda group: groups.get(group, []))
    found = Registry("shape")
    found.register("circle", "a circle")
    found.loaded = loaded
    return found


def test_what_was_registered_is_found_by_its_name(shapes):
    assert shapes.get("circle") == "a circle"
    shapes.register("circle", "a rounder one")
    assert shapes.get("circle") == "a rounder one"


def test_what_another_package_offers_is_listed_and_loaded_when_asked_for(shapes):
    assert list(shapes) == ["broken", "circle", "star"]
    assert shapes.loaded == []
    assert shapes.get("star") == "a star"
    assert shapes.get("star") == "a star"
    assert shapes.loaded == ["star"]


def test_an_unknown_name_names_the_known_ones(shapes):
    with pytest.raises(ConfigError, match="shape 'square': choose one of broken, circle, star"):
        shapes.get("square")


def test_a_package_that_cannot_be_loaded_is_named(shapes):
    with pytest.raises(ConfigError, match="offered as another_package:broken, cannot be loaded"):
        shapes.get("broken")
