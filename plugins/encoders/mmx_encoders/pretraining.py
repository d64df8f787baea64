"""The training loop by which the shipped encoders came about."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import Encoder, Tokens

WARM_UP = 200


def pretrain(
    name: str,
    encoder: Encoder,
    encode: Callable[[Tensor], Tokens],
    draw: Callable[[], tuple[Tensor, Tensor]],
    classes: int,
    steps: int,
    peak: float = 1.5e-3,
) -> None:
    """Train to name the class of what `draw` gives (inputs, labels); ship the encoder without its head."""
    head = nn.Linear(encoder.width, classes)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=steps, pct_start=WARM_UP / steps, cycle_momentum=False
    )
    right = torch.zeros(())
    for step in range(1, steps + 1):
        inputs, labels = draw()
        logits = head(encode(inputs).values[:, 0])
        F.cross_entropy(logits, labels, label_smoothing=0.1).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        right += (logits.argmax(dim=1) == labels).float().mean() / 250
        if step % 250 == 0:
            print(f"step {step}: {right:.1%} right in the last 250 steps", flush=True)
            right.zero_()
    path = Path(__file__).parent / "data" / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in encoder.state_dict().items()}, path)
