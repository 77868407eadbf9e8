"""Pictures become vectors through a real ResNet, here a small one with random weights."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from evensong.features import images
from evensong.features.images import ImageEncoder, open_image_encoder

Image = pytest.importorskip("PIL.Image")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    import torch

    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="bottleneck")
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "resnet")
    return tmp_path / "resnet"


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (60, 40)) -> str:
    Image.new("RGB", size, colour).save(path)
    return str(path)


def test_each_picture_has_one_vector_and_the_same_picture_the_same(resnet: Path, tmp_path: Path) -> None:
    red, blue = picture(tmp_path / "a.png", (255, 0, 0)), picture(tmp_path / "b.png", (0, 0, 255))
    copy = picture(tmp_path / "c.png", (255, 0, 0))
    vectors = ImageEncoder(resnet).encode([red, blue, copy, None])
    assert vectors.shape == (4, 16)
    assert np.array_equal(vectors[0], vectors[2])
    assert not np.allclose(vectors[0], vectors[1])
    assert not vectors[3].any()


def test_a_gpu_says_the_same_in_half_precision(resnet: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    pictures = [picture(tmp_path / "a.png", (255, 0, 0)), picture(tmp_path / "b.png", (0, 0, 255))]
    exact, found = (ImageEncoder(resnet, device=device).encode(pictures) for device in ("cpu", "cuda"))
    assert np.allclose(found, exact, atol=0.02 * np.abs(exact).max())


def test_what_is_no_picture_is_zeros_and_counted(
    resnet: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        vectors = ImageEncoder(resnet).encode([str(broken), str(tmp_path / "gone.png"), "http://example.test/a.png"])
    assert not vectors.any()
    assert "3 of 3 pictures cannot be read" in caplog.text


def test_a_picture_is_seen_once(resnet: Path, tmp_path: Path) -> None:
    uri = picture(tmp_path / "a.png", (9, 99, 199))
    first = ImageEncoder(resnet, cache=str(tmp_path / "cache")).encode([uri])
    again = ImageEncoder(resnet, cache=str(tmp_path / "cache"))
    assert again.encode([uri]).tobytes() == first.tobytes()
    assert again._model is None


def test_no_more_than_a_batch_of_pictures_is_open(
    resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_files, open_pixels, most = 0, [], [0, 0]

    class Content(bytes):
        def __del__(self) -> None:
            nonlocal open_files
            open_files -= 1

    def content(uri: str) -> bytes:
        nonlocal open_files
        open_files += 1
        most[0] = max(most[0], open_files)
        return Content(read(uri))  # type: ignore[arg-type]

    def pixels(content: bytes) -> np.ndarray | None:
        made = decode(content)
        assert made is not None
        open_pixels.append(weakref.ref(made))
        most[1] = max(most[1], sum(one() is not None for one in open_pixels))
        return made

    read, decode = images._content, images._pixels
    uris = [picture(tmp_path / f"{n}.png", (n, 2 * n, 3 * n)) for n in range(20)]
    whole = ImageEncoder(resnet).encode([*uris, uris[0]])
    monkeypatch.setattr(images, "_content", content)
    monkeypatch.setattr(images, "_pixels", pixels)
    monkeypatch.setattr(images, "_MOST_FILES", 8)
    parts = ImageEncoder(resnet, batch_size=3, cache=str(tmp_path / "cache")).encode([*uris, uris[0]])
    assert np.allclose(parts, whole, atol=1e-5)
    assert most == [8, 3]
    assert len(open_pixels) == 20
    again = ImageEncoder(resnet, cache=str(tmp_path / "cache"))
    assert np.array_equal(again.encode([uris[3], uris[17]]), parts[[3, 17]])
    assert len(open_pixels) == 20


def test_absent_weights_turn_the_feature_off_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert open_image_encoder(str(tmp_path)) is None
    assert len(caplog.records) == 1
    assert "image features are off" in caplog.text


def test_a_real_resnet_50_has_2048_numbers(tmp_path: Path) -> None:
    model = transformers.AutoModel.from_config(transformers.ResNetConfig())
    model.save_pretrained(tmp_path / "resnet-50")
    assert ImageEncoder(tmp_path / "resnet-50").encode([picture(tmp_path / "a.png", (1, 2, 3))]).shape == (1, 2048)


def test_without_what_runs_models_pictures_are_off_with_one_line(
    resnet: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from evensong.features import encoders
    from evensong.features.columns import ColumnSet, ImageColumn

    find = encoders.find_spec
    monkeypatch.setattr(encoders, "find_spec", lambda name: None if name == "transformers" else find(name))
    photos = pl.DataFrame({"photo": ["a.png", None]})
    with caplog.at_level(logging.WARNING):
        fitted = ColumnSet((ImageColumn(name="photo", encoder=str(resnet)),)).fit(photos)
        found = fitted.transform(photos)
    assert found.names == []
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("image features are off: pretrained models need transformers; run `pip install")
