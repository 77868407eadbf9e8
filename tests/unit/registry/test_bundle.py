"""Bundles: every file is accounted for, and nothing that could run code gets in."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from evensong.errors import BundleError
from evensong.registry import bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bundle" / "ranker").mkdir(parents=True)
    (tmp_path / "bundle" / "ranker" / "config.json").write_text("{}")
    (tmp_path / "bundle" / "popularity.json").write_text('["i1"]')
    return tmp_path / "bundle"


def test_manifest_names_every_file_and_keeps_the_metadata(folder: Path) -> None:
    manifest = bundle.write_manifest(folder, seed=7, lake_versions={"items": 3})
    assert sorted(manifest["files"]) == ["popularity.json", "ranker/config.json"]
    assert bundle.verify(folder) == manifest
    assert (manifest["seed"], manifest["lake_versions"]) == (7, {"items": 3})


def test_same_content_has_the_same_digest_and_other_content_another(folder: Path) -> None:
    bundle.write_manifest(folder, seed=7)
    first = bundle.digest(folder)
    bundle.write_manifest(folder, seed=7)
    assert bundle.digest(folder) == first
    (folder / "popularity.json").write_text('["i2"]')
    bundle.write_manifest(folder, seed=7)
    assert bundle.digest(folder) != first


def test_changed_file_is_named_with_both_hashes(folder: Path) -> None:
    manifest = bundle.write_manifest(folder)
    (folder / "popularity.json").write_text('["i9"]')
    expected = manifest["files"]["popularity.json"]
    with pytest.raises(
        BundleError, match=rf"popularity\.json: expected SHA-256 {expected}, found [0-9a-f]{{64}}.*fetch"
    ):
        bundle.verify(folder)


def test_missing_file_is_named(folder: Path) -> None:
    bundle.write_manifest(folder)
    (folder / "popularity.json").unlink()
    with pytest.raises(BundleError, match=r"popularity\.json, which is missing"):
        bundle.verify(folder)


def test_extra_file_is_named(folder: Path) -> None:
    bundle.write_manifest(folder)
    (folder / "extra.txt").write_text("x")
    with pytest.raises(BundleError, match=r"extra\.txt is not in the manifest"):
        bundle.verify(folder)


def test_missing_manifest_says_what_to_do(folder: Path) -> None:
    with pytest.raises(BundleError, match="expected the bundle's manifest, found none; fetch or assemble"):
        bundle.verify(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 99, "files": {}}'])
def test_broken_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json: expected"):
        bundle.verify(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "a\\b", ""])
def test_name_that_leaves_the_bundle_is_refused(folder: Path, name: str) -> None:
    manifest = bundle.write_manifest(folder)
    manifest["files"][name] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="leads out of the bundle"):
        bundle.verify(folder)


def test_link_is_refused(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/hosts")
    with pytest.raises(BundleError, match="link is a link"):
        bundle.write_manifest(folder)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_under_an_innocent_name_is_refused(folder: Path, protocol: int) -> None:
    (folder / "weights.dat").write_bytes(pickle.dumps(Path("x"), protocol=protocol))
    with pytest.raises(BundleError, match=r"weights\.dat: a pickle"):
        bundle.write_manifest(folder)


def test_zip_with_a_pickle_inside_is_refused_as_torch_writes_it(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.weights", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(BundleError, match=r"model\.weights: a pickle"):
        bundle.write_manifest(folder)


def test_array_of_objects_is_refused_and_an_array_of_numbers_is_not(folder: Path) -> None:
    np.save(folder / "numbers.npy", np.arange(3.0))
    bundle.write_manifest(folder)
    np.save(folder / "objects.npy", np.array([{}], dtype=object))
    with pytest.raises(BundleError, match=r"objects\.npy: a pickle"):
        bundle.write_manifest(folder)


def test_safetensors_whose_length_looks_like_a_pickle_is_welcome(folder: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (folder / "w.safetensors").write_bytes((0x0480).to_bytes(8, "little") + header.ljust(0x0480) + b"\0" * 4)
    bundle.write_manifest(folder)
    assert "w.safetensors" in bundle.verify(folder)["files"]


def test_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="expected the files of a bundle, found none"):
        bundle.write_manifest(tmp_path)
