"""Owns the two-tower retriever as PyTorch trains it; `models/forward.py` is its twin for serving.

Legend: B users, U items, D embedding dimension, H attention heads, L history length, C top categories, I indices and V
numbers of the declared columns, E width of their tables.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evensong.features.fitted_columns import FittedColumns
from evensong.models.config import TwoTowerConfig
from evensong.models.forward import COLUMN_WIDTH, column_key, dense_width
from evensong.models.inputs import NUM_LEVELS, USER_NUMERIC, ItemInputs, UserInputs, Vocabularies


class TwoTower(nn.Module):
    """Users and items as unit vectors whose inner product, over the temperature, is the logit of "wants".

    The item vector is a row of its own plus what its category, title and price say; an item without a row of its own
    gets the out-of-vocabulary row, which `drop_ids` trains. The user vector attends over the history by what the items
    are and how recent they are (one query and one score a position for each head, so that a step costs one gather), and
    adds the category shares and the activity.
    """

    numeric_mean: Tensor
    numeric_std: Tensor

    def __init__(self, config: TwoTowerConfig, vocabularies: Vocabularies, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        width, heads = config.dimension, config.num_heads
        self.item_id = nn.Embedding(len(vocabularies.items), width, padding_idx=0)
        self.history = nn.Embedding(len(vocabularies.items), width, padding_idx=0)
        self.category = nn.ModuleList(nn.Embedding(len(v), width, padding_idx=0) for v in vocabularies.categories)
        self.word = nn.EmbeddingBag(len(vocabularies.words), width, mode="mean", padding_idx=0)
        columns = vocabularies.columns
        self.user_columns = _column_tables(columns.users)
        self.item_columns = _column_tables(columns.items)
        self.content_in = nn.Linear(2 * width + 2 + dense_width(columns.items.outputs), width)
        self.content_out = nn.Linear(width, width)
        self.query = nn.Parameter(torch.empty(heads, width))
        self.position = nn.Parameter(torch.empty(heads, vocabularies.history_length))
        self.pooled = nn.Linear(heads * width, width, bias=False)
        own = dense_width(columns.users.outputs)
        self.user_in = nn.Linear((heads + 1) * width + len(USER_NUMERIC) + own, 2 * width)
        self._outputs = {"user": columns.users.outputs, "item": columns.items.outputs}
        self.user_out = nn.Linear(2 * width, width)
        self.register_buffer("numeric_mean", torch.zeros(len(USER_NUMERIC)))
        self.register_buffer("numeric_std", torch.ones(len(USER_NUMERIC)))
        self._initialise(generator)

    def fit_numeric(self, users: UserInputs) -> None:
        """Take the mean and spread of the numeric user features from the training users."""
        numeric = torch.from_numpy(users.numeric_BF).double()
        self.numeric_mean.copy_(numeric.mean(0))
        self.numeric_std.copy_(numeric.std(0, correction=0).clamp_min(1e-3))

    def items(self, batch: dict[str, Tensor], drop_ids: Tensor | None = None) -> Tensor:
        """Unit vectors (U, D); where `drop_ids` (U,) is true the item shows its content alone."""
        ids = batch["id_N"] if drop_ids is None else batch["id_N"].masked_fill(drop_ids, 1)
        category_UD = sum(table(batch["category_N3"][:, level]) for level, table in enumerate(self.category))
        words_UD = self.word(batch["word_NW"])
        own = self._dense("item", self.item_columns, batch["index_NI"], batch["value_NV"])
        content_UD = self.content_in(torch.cat([category_UD, words_UD, batch["price_N2"], *own], 1)).relu()
        return functional.normalize(self.item_id(ids) + self.content_out(content_UD), dim=1)

    def users(self, batch: dict[str, Tensor], drop: Tensor | None = None) -> Tensor:
        """Unit vectors (B, D); `drop` (B, H * D) scales what the history gives, for dropout."""
        history_BL = batch["history_BL"]
        # each item's score once a step, not once a place; then one fused gather and sum, twice as fast as a bmm
        importance_VH = self.history.weight @ self.query.T
        scores_BLH = functional.embedding(history_BL, importance_VH) + self.position.T
        # a finite mask: a user without any history gets even weights over nothing, not NaN
        scores_BLH = scores_BLH.masked_fill((history_BL == 0).unsqueeze(2), -1e4)
        weights_BHL = scores_BLH.softmax(1).transpose(1, 2)
        heads = weights_BHL.shape[1]
        pooled_BP = functional.embedding_bag(
            history_BL.repeat_interleave(heads, 0),
            self.history.weight,
            per_sample_weights=weights_BHL.flatten(0, 1),
            mode="sum",
            padding_idx=0,
        ).reshape(len(history_BL), -1)
        if drop is not None:
            pooled_BP = pooled_BP * drop
        taste_BD = torch.einsum("bc,bcd->bd", batch["share_BC"], self.category[0](batch["category_BC"]))
        numeric_BF = (batch["numeric_BF"] - self.numeric_mean) / self.numeric_std
        own = self._dense("user", self.user_columns, batch["index_BI"], batch["value_BV"])
        hidden = self.user_in(torch.cat([pooled_BP, taste_BD, numeric_BF, *own], 1)).relu()
        return functional.normalize(self.pooled(pooled_BP) + self.user_out(hidden), dim=1)

    def _dense(self, side: str, tables: nn.ModuleDict, index_BI: Tensor, value_BV: Tensor) -> list[Tensor]:
        """The declared columns: each index's row, the mean of a sequence's rows, then the numbers."""
        parts, place = [], 0
        for output in self._outputs[side]:
            if output.kind in ("index", "indices"):
                rows = index_BI[:, place : place + output.length]
                present = (rows != 0).unsqueeze(2)
                total = (tables[column_key(output.name)](rows) * present).sum(1)
                parts.append(total / present.sum(1).clamp_min(1))
                place += output.length
        return [*parts, value_BV]

    def _initialise(self, generator: torch.Generator) -> None:
        width = self.config.dimension
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias") or name == "position":
                    parameter.zero_()
                elif name.partition(".")[0] in ("user_columns", "item_columns"):
                    parameter.normal_(0, COLUMN_WIDTH**-0.5, generator=generator)
                elif "." not in name or parameter.shape[0] > 4 * width or "category" in name or name in _TABLES:
                    parameter.normal_(0, width**-0.5, generator=generator)
                else:
                    nn.init.xavier_uniform_(parameter, generator=generator)
            for table in (self.item_id, self.history, self.word, *self.category):
                table.weight[0].zero_()
            # the first head begins even, the last one looks at the newest items
            for head in range(self.config.num_heads):
                length = self.position.shape[1]
                slope = 6.0 * head / max(self.config.num_heads - 1, 1)
                self.position[head] = slope * torch.linspace(-1, 0, length) * length / 50
            # the declared columns begin unheard, whatever their number
            for layer, side in ((self.content_in, "item"), (self.user_in, "user")):
                layer.weight[:, layer.in_features - dense_width(self._outputs[side]) :] = 0
            # begin as "the user is the mean of the history", the item as its own row
            self.pooled.weight.copy_(torch.eye(width).repeat(1, self.config.num_heads) / self.config.num_heads)
            self.history.weight.copy_(self.item_id.weight)


_TABLES = {"item_id.weight", "history.weight", "word.weight", "query"}


def user_tensors(inputs: UserInputs, rows: Any = slice(None)) -> dict[str, Tensor]:
    """The arrays of some users as tensors, without a copy where rows are a slice."""
    return {name: torch.from_numpy(getattr(inputs, name)[rows]) for name in UserInputs.__dataclass_fields__}


def item_tensors(inputs: ItemInputs, rows: Any = slice(None)) -> dict[str, Tensor]:
    """The arrays of some items as tensors."""
    return {name: torch.from_numpy(getattr(inputs, name)[rows]) for name in ItemInputs.__dataclass_fields__}


def tables(vocabularies: Vocabularies) -> dict[str, Any]:
    """The embedding tables by parameter name, each with its vocabulary: what a warm start maps token by token."""
    named: dict[str, Any] = {"item_id.weight": vocabularies.items, "history.weight": vocabularies.items}
    named |= {f"category.{level}.weight": vocabularies.categories[level] for level in range(NUM_LEVELS)}
    return named | {"word.weight": vocabularies.words}


def _column_tables(columns: FittedColumns) -> nn.ModuleDict:
    indexed = [output for output in columns.outputs if output.kind in ("index", "indices")]
    return nn.ModuleDict({column_key(output.name): nn.Embedding(output.size, COLUMN_WIDTH) for output in indexed})
