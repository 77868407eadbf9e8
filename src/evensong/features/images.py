"""Images as numbers: the last layer of a ResNet-50 (He et al., 2016), averaged over the picture.

The weights come from a folder or a model id of the Hugging Face hub (`microsoft/resnet-50`), as safetensors; where they
are absent the feature is off, and one line says so. Needs the extra `text`, which brings transformers.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evensong.data import storage
from evensong.errors import ConfigurationError, StorageError
from evensong.features.encoders import VectorCache, check_installed, fingerprint, load_model, model_folder

_LOG = logging.getLogger(__name__)
#: How ResNet-50 was trained to see: the shorter edge at 256, the middle 224 of it, ImageNet's colour statistics.
_EDGE, _SIDE = 256, 224
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
#: A picture of more pixels is refused unread: it is no product photo, and may be made to fill the memory.
_MOST_PIXELS = 50_000_000
#: Pictures whose files are held at once, of however many there are.
_MOST_FILES = 256


def open_image_encoder(
    name: str, *, device: str = "cpu", cache: str | None = None, batch_size: int = 16
) -> ImageEncoder | None:
    """The encoder from a folder or a model id; none, and one line in the log, where its weights or what runs them are
    absent.
    """
    try:
        check_installed()
        return ImageEncoder(model_folder(name), device=device, cache=cache, batch_size=batch_size)
    except ConfigurationError as error:
        _LOG.warning("image features are off: %s", error)
        return None


class ImageEncoder:
    """Pictures to vectors; the model is loaded when the first picture comes that the cache does not know."""

    def __init__(self, folder: Path, *, device: str = "cpu", cache: str | None = None, batch_size: int = 16) -> None:
        if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
            raise ConfigurationError(f"{folder}: expected config.json and safetensors weights, found none")
        self.folder, self.device, self.batch_size = folder, device, batch_size
        self.dimension = int(json.loads((folder / "config.json").read_text())["hidden_sizes"][-1])
        self.fingerprint = fingerprint(folder)
        precision = "bf16" if device.startswith("cuda") else "f32"
        self._cache = VectorCache(storage.join(cache, f"{self.fingerprint}-{precision}")) if cache else None
        self._model: Any = None

    def encode(self, uris: Sequence[str | None]) -> NDArray[np.float32]:
        """`[uris, dimension]`; a missing picture, or one that cannot be read, is all zeros and counted in the log.

        However many there are, `_MOST_FILES` of their files and `batch_size` decoded pictures are in memory.
        """
        vectors = np.zeros((len(uris), self.dimension), np.float32)
        rows: dict[str, list[int]] = {}
        for row, uri in enumerate(uris):
            if uri:
                rows.setdefault(uri, []).append(row)
        order, unread = list(rows), 0
        for begin in range(0, len(order), _MOST_FILES):
            asked = order[begin : begin + _MOST_FILES]
            known = self._known(asked)
            for uri in asked:
                if uri in known:
                    vectors[rows[uri]] = known[uri]
                else:
                    unread += len(rows[uri])
        if unread:
            _LOG.warning("%d of %d pictures cannot be read; their vectors are zeros", unread, len(uris))
        return vectors

    def _known(self, uris: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors of those that can be read, from the cache or computed and kept there."""
        pictures = {uri: content for uri in uris if (content := _content(uri)) is not None}
        keys = {uri: hashlib.sha256(content).hexdigest() for uri, content in pictures.items()}
        known = self._cache.find(sorted(set(keys.values()))) if self._cache else {}
        new = self._encoded({keys[uri]: content for uri, content in pictures.items() if keys[uri] not in known})
        if self._cache:
            self._cache.add(new)
        known |= new
        return {uri: known[key] for uri, key in keys.items() if key in known}

    def _encoded(self, contents: dict[str, bytes]) -> dict[str, NDArray[np.float32]]:
        found: dict[str, NDArray[np.float32]] = {}
        order = sorted(contents)
        for begin in range(0, len(order), self.batch_size):
            found |= self._batch({key: contents[key] for key in order[begin : begin + self.batch_size]})
        return found

    def _batch(self, contents: dict[str, bytes]) -> dict[str, NDArray[np.float32]]:
        pixels = {key: image for key, content in contents.items() if (image := _pixels(content)) is not None}
        return dict(zip(pixels, self._pooled(np.stack(list(pixels.values()))), strict=True)) if pixels else {}

    def _pooled(self, pixels_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        if self._model is None:
            self._model = load_model(self.folder, self.device)
        batch = torch.from_numpy(pixels_BCHW).to(self.device, self._model.dtype)
        with torch.inference_mode():
            pooled = self._model(batch).pooler_output
        vectors: NDArray[np.float32] = pooled.float().flatten(1).cpu().numpy()
        return vectors


def _content(uri: str) -> bytes | None:
    """The bytes of a local file or an S3 object; other schemes are not fetched, so a table cannot make us call out."""
    try:
        return None if "://" in uri and not storage.is_remote(uri) else storage.read_bytes(uri)
    except (StorageError, OSError):
        return None


def _pixels(content: bytes) -> NDArray[np.float32] | None:
    """`[3, 224, 224]`, normalised; none when the bytes are no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                return None
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    scale = _EDGE / min(image.size)
    width, height = (max(_EDGE, round(edge * scale)) for edge in image.size)
    left, top = (width - _SIDE) // 2, (height - _SIDE) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + _SIDE, top + _SIDE))
    values = (np.asarray(image, np.float32) / 255.0 - np.array(_MEAN, np.float32)) / np.array(_DEVIATION, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))
