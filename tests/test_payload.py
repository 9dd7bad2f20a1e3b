import base64
import uuid

import numpy as np
import pytest
from conftest import picture, scene, unit
from hypothesis import given
from hypothesis import strategies as st

from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.crops import object_pixels
from soir_qdrant.qdrant.codes import decode, encode
from soir_qdrant.qdrant.identity import Place, check_id, point_id
from soir_qdrant.qdrant.payload import (
    Origin,
    PayloadError,
    best_object,
    build_payload,
    clean_payload,
    shown,
)
from soir_qdrant.types import LoadedImage, SceneObject


def test_ids():
    assert point_id("ab") == point_id("ab") != point_id("ac")
    assert uuid.UUID(point_id("ab")).version == 5
    some = uuid.uuid4()
    assert check_id(some) == check_id(str(some).upper()) == check_id(some.hex) == str(some)
    assert check_id(np.int64(3)) == 3
    for bad in ("img_001", -1, 1.5, True, 2**64, None, "12"):
        with pytest.raises(ConfigError, match="whole numbers from 0 and UUIDs"):
            check_id(bad)


def test_payload_is_as_designed():
    one = scene(2)
    image = LoadedImage(picture(1), "a.png", "/x/a.png", "ff")
    origin, places = Origin("e1", "r1", "tenant", 8), [Place("/x/a.png", (7, 8)), Place("/x/b.png")]
    payload = build_payload(image, one, origin, {"mine": 3}, places)
    codes = [item.pop("code") for item in payload["soir"]["objects"]]
    assert [len(decode(code)) for code in codes] == [8, 8]
    assert payload == {
        "soir": {
            "uri": "/x/a.png",
            "uris": ["/x/a.png", "/x/b.png"],
            "files": [[7, 8], None],
            "payloads": [],
            "width": 40,
            "height": 30,
            "sha256": "ff",
            "pixels": image.pixels,
            "encoder": "e1",
            "recipe": "r1",
            "namespace": "tenant",
            "objects": [
                {"box": [0.0, 0.0, 4.0, 6.0], "score": 1.0, "area": 0.02, "label": "l0"},
                {"box": [5.0, 0.0, 9.0, 6.0], "score": 1.0, "area": 0.02, "label": "l1"},
            ],
            "labels": ["l0", "l1"],
            "count": 2,
        },
        "mine": 3,
    }
    bare = build_payload(image, one, Origin("e1", "r1"), {}, [])["soir"]
    assert bare["uri"] is None
    assert "namespace" not in bare
    assert "code" not in bare["objects"][0]
    assert "by_user" not in bare
    assert build_payload(image, one, Origin("e1", "r1", by_user=True), {}, [])["soir"]["by_user"] is True


def test_areas():
    box, mask = (2.0, 3.0, 6.5, 7.0), np.zeros((30, 40), bool)
    assert object_pixels(SceneObject(box), 40, 30) == 4.5 * 4
    assert object_pixels(SceneObject(box, mask), 40, 30) == 4.5 * 4  # an empty mask is the whole box
    mask[0:5, 0:5] = True  # 2 x 3 pixels of it in the box
    assert object_pixels(SceneObject(box, mask), 40, 30) == 6
    assert object_pixels(SceneObject(box, np.eye(4, 5, dtype=bool)), 40, 30) == 4


def test_users_payloads():
    some = uuid.uuid4()
    assert clean_payload(None) == {}
    assert clean_payload({"id": some, "list": (1, 2)}) == {"id": str(some), "list": [1, 2]}
    assert clean_payload({"n": np.float32(0.5), "row": np.arange(2)}) == {"n": 0.5, "row": [0, 1]}
    for bad, message in [
        ({"soir": 1}, "kept for this package"),
        ([1], "not a dict"),
        ({1: 2}, "text keys"),
        ({"a": float("nan")}, "JSON"),
        ({"\ud800": 1}, "JSON"),  # half of a character, that no text on the wire may hold
        ({"a": object()}, "JSON"),
    ]:
        with pytest.raises(PayloadError, match=message):
            clean_payload(bad)


@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 64),
    spread=st.sampled_from([0, 1, 5]),
    scale=st.sampled_from([1e-6, 1, 1e6]),
)
def test_codes_keep_the_direction(seed, count, spread, scale):
    row = scale * unit(64, seed=seed)
    row[seed % 64] *= 1 + spread  # some encoders have numbers far larger than the rest
    code, head = encode(row, count), row[:count]
    decoded = decode(code)
    assert decoded.shape == (count,)
    assert decoded @ head / np.linalg.norm(decoded) / np.linalg.norm(head) > 0.98
    assert np.array_equal(decode(encode(-row, count)), -decoded)
    assert len(code) <= 2 + 4 * (count / 2 / 3 + 1)  # half a byte a number, three bytes in four characters


def test_codes_of_short_and_empty_vectors():
    row = unit(64, seed=1)
    assert len(decode(encode(row, 999))) == 64
    assert not decode(encode(np.zeros(5, np.float32), 4)).any()
    assert len(decode(encode(np.zeros(5, np.float32), 3))) == 3
    assert len(encode(row, 0)) == 2


def test_codes_of_version_0_1_have_a_byte_a_number():
    old = base64.b64encode(np.array([127, -3, 0], np.int8).tobytes()).decode()
    assert decode(old).tolist() == [127, -3, 0]
    objects = [{"box": [0, 0, 1, 1], "code": old}, {"box": [1, 0, 2, 1], "code": encode(np.eye(3)[1], 3)}]
    payload = {"soir": {"objects": objects}}
    assert [best_object(payload, row).index for row in np.eye(3, dtype=np.float32)[:2]] == [0, 1]


def test_best_object():
    rows = unit(4, 64, seed=3)
    objects = [{"box": [i, 0, i + 1, 1], "code": encode(row, 32)} for i, row in enumerate(rows)]
    payload = {"soir": {"objects": objects}}
    for i, row in enumerate(rows):
        for kept in (rows.tolist(), None, rows[:2].tolist()):  # the last do not fit: the codes decide
            match = best_object(payload, row, kept)
            assert (match.index, match.box) == (i, (i, 0, i + 1, 1))
            assert match.score > 0.99
    bare = shown({"soir": {"objects": objects, "patches": ["AA=="] * 4}})
    assert set(bare["soir"]) == {"objects"}
    assert all("code" not in item for item in bare["soir"]["objects"])
    assert "code" in objects[0]
    assert best_object(bare, rows[0], None) is None
    alone = best_object({"soir": {"objects": bare["soir"]["objects"][:1]}}, rows[0])
    assert (alone.index, alone.box, alone.score) == (0, (0, 0, 1, 1), None)
    assert best_object({}, rows[0], None) is None
    assert shown({"mine": 1}) == {"mine": 1}
