"""An exponential moving average of a network's weights, which is what one samples from.

    shadow <- decay_n shadow + (1 - decay_n) weight,      decay_n = min(decay, (1 + n) / (10 + n))

The ramp in n lets the average forget the random start. Weights near the end of training rattle
around a minimum; their average lies closer to it. Buffers (counters, running means) are copied. The
average is kept in float32 or better: in half precision a step of 1 - decay would round to nothing.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["EMA"]


class EMA:
    """The average of a module's parameters; `update()` after each optimiser step.

    decay: in [0, 1); 0.999 averages over about a thousand steps.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> ema = EMA(layer, decay=0.0)
    >>> with torch.no_grad(): _ = layer.weight.fill_(7.0)
    >>> ema.update(layer)
    >>> with ema.applied(layer): layer.weight.item()
    7.0
    """

    def __init__(self, module: nn.Module, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay: got {decay}, wanted a number in [0, 1)")
        self.decay, self.updates = decay, 0
        self.averaged = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        self.shadow = {name: value.detach().clone() for name, value in module.state_dict().items()}
        for name in self.averaged:
            self.shadow[name] = self.shadow[name].to(torch.promote_types(self.shadow[name].dtype, torch.float32))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in module.state_dict().items():
            average = self.shadow[name]
            if name in self.averaged:
                average.lerp_(value.to(average), 1 - decay)
            else:
                average.copy_(value)

    def copy_to(self, module: nn.Module) -> None:
        """Write the average into the module."""
        module.load_state_dict(self.shadow)

    @contextmanager
    def applied(self, module: nn.Module):
        """Within the block the module holds the average, afterwards its own weights again."""
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self.copy_to(module)
        try:
            yield module
        finally:
            module.load_state_dict(own)

    def state_dict(self) -> dict:
        """What `load_state_dict` needs to go on."""
        return {"shadow": self.shadow, "updates": self.updates, "decay": self.decay}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a saved average; KeyError or ValueError, and no change, where it is of another module."""
        if set(state["shadow"]) != set(self.shadow):
            odd = sorted(set(state["shadow"]) ^ set(self.shadow))
            raise KeyError(f"state: got weights {odd[:4]} too many or too few")
        for name, value in state["shadow"].items():
            wanted = self.shadow[name].shape
            if value.shape != wanted:
                raise ValueError(f"state: got {name} of shape {tuple(value.shape)}, wanted {tuple(wanted)}")
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)
        self.updates, self.decay = state["updates"], state["decay"]
