"""Owns checkpoints: a training run's state after an epoch, in one safetensors file written whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass

import safetensors.torch
from torch import Tensor, nn

from evensong.data import storage
from evensong.training.optimizers import AdamW


@dataclass(frozen=True)
class Checkpoints:
    """Where a run leaves its state, and what makes the run the same run.

    A killed run that starts again finds the last whole epoch and goes on from it; since each epoch draws from its own
    generator, it ends with the very weights of an undisturbed run. A state with another fingerprint (other data, other
    settings) is not taken.
    """

    uri: str
    fingerprint: str

    def save(self, epoch: int, model: nn.Module, optimizer: AdamW) -> None:
        """Write the state after `epoch` whole epochs."""
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer.state().items()}
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        metadata = {"epoch": str(epoch), "fingerprint": self.fingerprint}
        storage.write_bytes(self.uri, safetensors.torch.save(contiguous, metadata))

    def load(self, model: nn.Module, optimizer: AdamW) -> int:
        """Put the saved state back and return its number of whole epochs; 0 and nothing changed when there is none."""
        if not storage.exists(self.uri):
            return 0
        content = storage.read_bytes(self.uri)
        metadata = _metadata(content)
        if metadata.get("fingerprint") != self.fingerprint:
            return 0
        tensors = safetensors.torch.load(content)
        model.load_state_dict(_below(tensors, "model."))
        optimizer.load_state(_below(tensors, "optimizer."))
        return int(metadata["epoch"])


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _metadata(content: bytes) -> dict[str, str]:
    """The free text of a safetensors file: its header is a length (8 bytes, little endian) and JSON."""
    size = int.from_bytes(content[:8], "little")
    header: dict[str, dict[str, str]] = json.loads(content[8 : 8 + size])
    return header.get("__metadata__", {})
