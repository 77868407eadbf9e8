"""Owns how trained models stand in a folder: JSON for what was fitted, safetensors for weights, no pickle anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import ValidationError

from evensong.errors import BundleError
from evensong.features.model_columns import ModelColumns
from evensong.models.config import RankerConfig, TwoTowerConfig
from evensong.models.forward import RankerForward, TowersForward
from evensong.models.inputs import Vocabularies
from evensong.models.rank_features import FEATURES

#: Below the towers' folder, the fitted columns.
COLUMNS = "columns"

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class TowerWeights:
    """Trained towers: the content of `retriever/`."""

    config: TwoTowerConfig
    vocabularies: Vocabularies
    tensors: Tensors

    def forward(self) -> TowersForward:
        """The towers, ready to compute."""
        return TowersForward(self.tensors, self.config.temperature, self.vocabularies.columns)


@dataclass(frozen=True)
class RankerWeights:
    """A trained ranker: the content of `ranker/`."""

    config: RankerConfig
    tensors: Tensors

    def forward(self) -> RankerForward:
        """The ranker, ready to compute."""
        return RankerForward(self.tensors, len(self.config.hidden), len(self.config.crosses))


def save_towers(folder: Path, weights: TowerWeights) -> None:
    """Write `config.json`, `vocabulary.json`, `towers.safetensors` and the folder `columns`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", {"model": "two_tower", **weights.config.model_dump(mode="json")})
    _write_json(folder / "vocabulary.json", weights.vocabularies.to_dict())
    (folder / "towers.safetensors").write_bytes(_bytes(weights.tensors))
    weights.vocabularies.columns.save(folder / COLUMNS)


def load_towers(folder: Path, *, cache: str | None = None, device: str = "cpu") -> TowerWeights:
    """Read what `save_towers` wrote.

    Args:
        cache: URI of a folder in which the columns' encoders keep the vectors of what they have seen.
        device: where these encoders run; another device than the training's rounds otherwise.

    Raises:
        BundleError: a file is missing or is not what it should be.
    """
    config = _read_config(folder, "two_tower")
    try:
        columns = (
            ModelColumns.load(folder / COLUMNS, cache=cache, device=device) if (folder / COLUMNS).is_dir() else None
        )
        vocabularies = Vocabularies.from_dict(_read_json(folder / "vocabulary.json"), columns)
        return TowerWeights(TwoTowerConfig(**config), vocabularies, _tensors(folder / "towers.safetensors"))
    except (KeyError, ValueError, TypeError, ValidationError) as error:
        raise _damaged(folder, error) from error


def save_ranker(folder: Path, weights: RankerWeights) -> None:
    """Write `config.json` and `ranker.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", {"model": "ranker", **weights.config.model_dump(mode="json")})
    (folder / "ranker.safetensors").write_bytes(_bytes(weights.tensors))


def load_ranker(folder: Path) -> RankerWeights:
    """Read what `save_ranker` wrote.

    Raises:
        BundleError: a file is missing or is not what it should be, or the ranker reads features that this code lacks.
    """
    config = _read_config(folder, "ranker")
    try:
        ranker = RankerConfig(**config)
    except (ValidationError, TypeError) as error:
        raise _damaged(folder, error) from error
    if ranker.features[: len(FEATURES)] != FEATURES:
        raise BundleError(
            f"{folder}: expected a ranker whose features begin with {list(FEATURES)}, got {list(ranker.features)}; "
            "serve it with the release that trained it, or train the night again"
        )
    return RankerWeights(ranker, _tensors(folder / "ranker.safetensors"))


def _read_config(folder: Path, model: str) -> dict[str, Any]:
    config = _read_json(folder / "config.json")
    if not isinstance(config, dict) or config.pop("model", None) != model:
        raise BundleError(f"{folder / 'config.json'}: expected the configuration of a {model}; train the night again")
    return config


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(f"{path}: expected a file of a trained model, found none; train the night again") from error
    except ValueError as error:
        raise BundleError(f"{path}: expected JSON, got {error}; train the night again") from error


def _bytes(tensors: Tensors) -> bytes:
    content: bytes = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    return content


def _tensors(path: Path) -> Tensors:
    try:
        tensors: Tensors = safetensors.numpy.load(path.read_bytes())
        return tensors
    except FileNotFoundError as error:
        raise BundleError(f"{path}: expected weights, found none; train the night again") from error
    except Exception as error:  # safetensors raises its own type, which derives from Exception alone
        raise _damaged(path, error) from error


def _damaged(place: Path, error: Exception) -> BundleError:
    return BundleError(f"{place}: expected a trained model as Evensong saves it, got {error}; train the night again")
