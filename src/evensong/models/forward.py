"""Owns the forward passes of the trained models in plain numpy: serving, indexing and evaluation need no PyTorch.

Legend: B users, N items, D embedding dimension, H attention heads, L history length, I indices and V numbers of the
declared columns, E width of their tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evensong.features.fitted_columns import Output
from evensong.features.model_columns import ModelColumns
from evensong.models.inputs import ItemInputs, UserInputs

Floats = NDArray[np.float32]

#: Width of the tables of the declared columns.
COLUMN_WIDTH = 8


def dense_width(outputs: Sequence[Output]) -> int:
    """Numbers a row that declared columns add to a tower's input."""
    return sum(COLUMN_WIDTH if output.kind in ("index", "indices") else output.size for output in outputs)


def column_key(name: str) -> str:
    """What a declared column's table is called: PyTorch refuses modules with the names of its own methods."""
    return f"column_{name}"


class TowersForward:
    """The two towers from their saved weights; equals `TwoTower` up to float rounding (tested)."""

    def __init__(self, weights: Mapping[str, Floats], temperature: float, columns: ModelColumns | None = None) -> None:
        self.temperature = temperature
        columns = columns or ModelColumns.none()
        self._outputs = {"user": columns.users.outputs, "item": columns.items.outputs}
        self._w = dict(weights)
        # each item's attention score is the same for every user: one small table instead of a product a request
        self._importance_VH = self._w["history.weight"] @ self._w["query"].T

    def items(self, inputs: ItemInputs) -> Floats:
        """Unit vectors (N, D)."""
        w = self._w
        category_ND = sum(w[f"category.{level}.weight"][inputs.category_N3[:, level]] for level in range(3))
        present_NW1 = (inputs.word_NW != 0)[:, :, None]
        count_N1 = np.maximum(present_NW1.sum(1), 1)
        words_ND = (w["word.weight"][inputs.word_NW] * present_NW1).sum(1) / count_N1
        own = self._dense("item", inputs.index_NI, inputs.value_NV)
        content = np.concatenate([category_ND, words_ND, inputs.price_N2, *own], 1).astype(np.float32)
        hidden = np.maximum(content @ w["content_in.weight"].T + w["content_in.bias"], 0)
        out = w["item_id.weight"][inputs.id_N] + hidden @ w["content_out.weight"].T + w["content_out.bias"]
        return _unit(out)

    def users(self, inputs: UserInputs) -> Floats:
        """Unit vectors (B, D), each row computed alone, so that a batch gives the very bits of single requests."""
        if len(inputs) == 0:
            return np.zeros((0, self._w["pooled.weight"].shape[0]), np.float32)
        return np.stack([self._user(inputs, row) for row in range(len(inputs))])

    def _user(self, inputs: UserInputs, row: int) -> Floats:
        w = self._w
        history_L = inputs.history_BL[row]
        start = int(np.argmax(history_L != 0)) if history_L[-1] else len(history_L)
        history_L = history_L[start:]
        width = w["pooled.weight"].shape[0]
        if len(history_L):
            scores_HL = self._importance_VH[history_L].T + w["position"][:, start:]
            scores_HL = np.exp(scores_HL - scores_HL.max(1, keepdims=True))
            scores_HL /= scores_HL.sum(1, keepdims=True)
            pooled_P = (scores_HL @ w["history.weight"][history_L]).ravel()
        else:
            pooled_P = np.zeros(w["position"].shape[0] * width, np.float32)
        taste_D = inputs.share_BC[row] @ w["category.0.weight"][inputs.category_BC[row]]
        numeric_F = (inputs.numeric_BF[row] - w["numeric_mean"]) / w["numeric_std"]
        own = self._dense("user", inputs.index_BI[row : row + 1], inputs.value_BV[row : row + 1])
        dense = np.concatenate([pooled_P, taste_D, numeric_F, *(part[0] for part in own)])
        hidden = np.maximum(w["user_in.weight"] @ dense + w["user_in.bias"], 0)
        out = w["pooled.weight"] @ pooled_P + w["user_out.weight"] @ hidden + w["user_out.bias"]
        return _unit(out[None])[0]

    def _dense(self, side: str, index_NI: NDArray[np.int32], value_NV: Floats) -> list[Floats]:
        parts, place = [], 0
        for output in self._outputs[side]:
            if output.kind in ("index", "indices"):
                rows = index_NI[:, place : place + output.length]
                present = (rows != 0)[:, :, None]
                total = (self._w[f"{side}_columns.{column_key(output.name)}.weight"][rows] * present).sum(1)
                parts.append(total / np.maximum(present.sum(1), 1).astype(np.float32))
                place += output.length
        return [*parts, value_NV]


def _unit(vectors: Floats) -> Floats:
    norms = np.sqrt((vectors * vectors).sum(1, keepdims=True))
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)


class RankerForward:
    """The ranker from its saved weights; equals `Ranker` up to float rounding (tested)."""

    def __init__(self, weights: Mapping[str, Floats], num_layers: int, num_pairs: int = 0) -> None:
        self._mean, self._std = weights["mean"], weights["std"]
        self._linear = np.ascontiguousarray(weights["linear.weight"][0])
        self._layers = [(weights[f"layers.{i}.weight"].T, weights[f"layers.{i}.bias"]) for i in range(num_layers)]
        self._out = np.ascontiguousarray(weights["out.weight"][0])
        self._pairs = [np.ascontiguousarray(weights[f"pairs.{i}.weight"][:, 0]) for i in range(num_pairs)]

    def __call__(self, features_KF: Floats) -> Floats:
        """Scores (K,) of one user's candidates."""
        num_features = len(self._mean)
        scaled = (features_KF[:, :num_features] - self._mean) / self._std
        hidden = np.clip(scaled, -5, 5)
        for weight, bias in self._layers:
            hidden = np.maximum(hidden @ weight + bias, 0)
        scores = scaled @ self._linear + hidden @ self._out
        for place, weight in enumerate(self._pairs):
            scores = scores + weight[features_KF[:, num_features + place].astype(np.int64)]
        return scores.astype(np.float32)
