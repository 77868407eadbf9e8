"""Owns checkpoints: a training run's state after an epoch, in one safetensors file written whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor, nn

from evensong.data import storage


@dataclass(frozen=True)
class Checkpoints:
    """Where a run leaves its state, and what makes the run the same run.

    A killed run that starts again finds the last whole epoch and goes on from it; since each epoch draws from its own
    generator, it ends with the very weights of an undisturbed run. A state with another fingerprint (other data, other
    settings) is not taken.
    """

    uri: str
    fingerprint: str

    def save(self, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write the state after `epoch` whole epochs."""
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        metadata = {"epoch": str(epoch), "fingerprint": self.fingerprint}
        storage.write_bytes(self.uri, safetensors.torch.save(contiguous, metadata))

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Put the saved state back and return its number of whole epochs; 0 and nothing changed when there is none."""
        if not storage.exists(self.uri):
            return 0
        content = storage.read_bytes(self.uri)
        metadata = _metadata(content)
        if metadata.get("fingerprint") != self.fingerprint:
            return 0
        tensors = safetensors.torch.load(content)
        model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return int(metadata["epoch"])


def _metadata(content: bytes) -> dict[str, str]:
    """The free text of a safetensors file: its header is a length (8 bytes, little endian) and JSON."""
    import json

    size = int.from_bytes(content[:8], "little")
    header: dict[str, dict[str, str]] = json.loads(content[8 : 8 + size])
    return header.get("__metadata__", {})
