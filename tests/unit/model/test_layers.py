"""What manifests are made of."""

import pytest

from magsd.model.layers import Layer, Manifest

IMAGE, ONE, TWO = (Layer(name * 64, 4096) for name in "abc")
EMPTY = Manifest("standard", (IMAGE,))


def test_what_was_changed_lies_on_top() -> None:
    made = EMPTY.with_layer(ONE).with_layer(None).with_layer(TWO)
    assert made.layers == (IMAGE, ONE, TWO)
    assert made.size_bytes == 8192
    assert Manifest.from_json(made.as_json()) == made


@pytest.mark.parametrize(
    ("before", "after"), [((ONE,), (ONE,)), ((ONE, TWO), (TWO, ONE)), ((TWO, ONE), (TWO, ONE))]
)
def test_none_is_there_twice(before: tuple[Layer, ...], after: tuple[Layer, ...]) -> None:
    made = EMPTY
    for layer in (*before, ONE):
        made = made.with_layer(layer)
    assert made.own_layers == after


def test_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="form 7"):
        Manifest.from_json({**EMPTY.as_json(), "form": 7})
