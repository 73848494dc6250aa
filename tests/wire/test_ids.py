from __future__ import annotations

import numpy as np
import pytest

from wire.errors import UsageError
from wire.ids import ID_BYTES, keyed_id, keyed_ids

# The first is what `printf train-images-idx3-ubyte#17 | openssl dgst -sha256 -hmac secret` begins with.
GOLDEN = [
    (b"secret", "train-images-idx3-ubyte#17", "f879f1d12d81049dd86e319d666003fe"),
    (b"k" * 100, "ü", "477e819d04cc7dafa81117bd00a22351"),
]


@pytest.mark.parametrize(("key", "name", "digits"), GOLDEN)
def test_golden_ids(key: bytes, name: str, digits: str) -> None:
    assert keyed_id(key, name).hex() == digits


def test_a_batch_of_ids_is_one_tensor() -> None:
    ids = keyed_ids(b"secret", ["a", "b", "a"])
    assert ids.dtype == np.uint8
    assert ids.shape == (3, ID_BYTES)
    assert [row.tobytes() for row in ids] == [keyed_id(b"secret", name) for name in ("a", "b", "a")]


def test_no_ids_are_an_empty_tensor() -> None:
    assert keyed_ids(b"secret", []).shape == (0, ID_BYTES)


def test_another_key_gives_other_ids() -> None:
    assert keyed_id(b"one", "a") != keyed_id(b"two", "a")


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(UsageError, match="`ids_key` is empty"):
        keyed_id(b"", "a")
    with pytest.raises(UsageError, match="`ids_key` is empty"):
        keyed_ids(b"", ["a"])
