"""Train the two demo models on scikit-learn's digits and write them as ONNX files.

A residual CNN, exported with its BatchNormalization nodes kept, so that folding them has something to do; and a
transformer that reads the image as 64 overlapping patches, trained with an L1 penalty, so that most of its weights are
small and can be pruned. Both take `image`, float32 [batch, 1, 8, 8] with values 0..1, and give `logits`, float32
[batch, 10].

Needs torch 2.13, scikit-learn and onnxruntime; see README.md. One thread and fixed seeds: the same versions on the same
kind of CPU give the same files.

    python examples/train_digits.py [--out graphopt/demo] [--only cnn|transformer]
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

SEED: Final = 7
TEST_SAMPLES: Final = 597
CALIBRATION_SAMPLES: Final = 640
LEAST_ACCURACY: Final = 0.97
OPSET: Final = 17


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNormalization and a shortcut around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, height, width] to the same shape."""
        inner = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(x + self.second_norm(self.second(inner)))


class DigitsCnn(nn.Sequential):
    """A residual network for 8x8 images: 32 channels at 8x8, 64 at 4x4, global average pool, linear."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            Residual(32),
            nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            Residual(64),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


class Block(nn.Module):
    """A pre-norm transformer block: self-attention, then a feed-forward part, each with a shortcut."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.merge = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, tokens, width] to the same shape."""
        x = x + self.attend(self.attention_norm(x))
        return x + self.down(nn.functional.gelu(self.up(self.feed_norm(x))))

    def attend(self, x: Tensor) -> Tensor:
        """Mix the tokens of [batch, tokens, width]."""
        query, key, value = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5), dim=-1)
        return self.merge((weights @ value).transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """Map [batch, tokens, width] to [batch, heads, tokens, width / heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class DigitsTransformer(nn.Module):
    """A transformer over the 64 overlapping 3x3 patches of an 8x8 image."""

    def __init__(self, width: int = 96, heads: int = 4, inner: int = 512, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 3, padding=1)
        self.position = nn.Parameter(torch.randn(1, 64, width) * 0.1)
        self.blocks = nn.Sequential(*(Block(width, heads, inner) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Map [batch, 1, 8, 8] to logits [batch, 10]."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.position
        return self.classify(self.norm(self.blocks(tokens)).mean(dim=1))


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (images, labels) for training and for testing, images as float32 [n, 1, 8, 8] in 0..1."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    order = torch.tensor(np.random.default_rng(SEED).permutation(len(images)))
    train, test = order[TEST_SAMPLES:], order[:TEST_SAMPLES]
    return (images[train], labels[train]), (images[test], labels[test])


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image of [n, 1, 8, 8] by at most one pixel in each direction."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    corners = torch.randint(0, 3, (len(images), 2), generator=generator)
    return torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, corners.tolist(), strict=True)])


def train(
    model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, rate: float, decay: float, l1: float
) -> nn.Module:
    """Train with AdamW on one cycle of the learning rate; l1 is the weight of the mean absolute matrix entry sum."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    batch = 64
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.15)
    matrices = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    for epoch in range(epochs):
        model.train()
        seen = 0.0
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            loss = nn.functional.cross_entropy(
                model(shifted(images[rows], generator)), labels[rows], label_smoothing=0.05
            )
            penalty = sum((weight.abs().sum() for weight in matrices), torch.zeros(()))
            optimizer.zero_grad()
            (loss + l1 * penalty).backward()
            optimizer.step()
            schedule.step()
            seen += loss.item() * len(rows)
        if epoch % 10 == 9 or epoch == epochs - 1:
            print(f"  epoch {epoch + 1:3d} loss {seen / len(images):.4f}", flush=True)
    return model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write the model with a dynamic batch; BatchNormalization, where there is any, stays a node of its own."""
    normalized = any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(2, 1, 8, 8),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE if normalized else torch.onnx.TrainingMode.EVAL,
            do_constant_folding=not normalized,
        )


def accuracy(path: Path, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that ONNX Runtime classifies right."""
    session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"image": images.numpy()})[0]
    return float((logits.argmax(1) == labels.numpy()).mean())


def main() -> None:
    """Train, export, check and store both models and their data."""
    parser = argparse.ArgumentParser(description="Train the demo models.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "graphopt" / "demo")
    parser.add_argument("--only", choices=["cnn", "transformer"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    arguments.out.mkdir(parents=True, exist_ok=True)

    (images, labels), (test_images, test_labels) = digits()
    plans = {
        "cnn": (DigitsCnn, {"epochs": 20, "rate": 4e-3, "decay": 1e-2, "l1": 0.0}),
        "transformer": (DigitsTransformer, {"epochs": 45, "rate": 2e-3, "decay": 1e-2, "l1": 2.5e-4}),
    }
    for name, (kind, settings) in plans.items():
        if arguments.only not in {None, name}:
            continue
        print(f"training the {name}", flush=True)
        torch.manual_seed(SEED)
        model = train(kind(), images, labels, **settings)
        path = arguments.out / f"digits_{name}.onnx"
        export(model, path)
        score = accuracy(path, test_images, test_labels)
        print(f"  {path}: {path.stat().st_size} bytes, {score:.2%} of {len(test_labels)} test images", flush=True)
        if score < LEAST_ACCURACY:
            msg = f"the {name} reached only {score:.2%}; {LEAST_ACCURACY:.0%} are wanted"
            raise SystemExit(msg)

    np.savez_compressed(arguments.out / "digits_calibration.npz", image=images[:CALIBRATION_SAMPLES].numpy())
    np.savez_compressed(arguments.out / "digits_test.npz", image=test_images.numpy(), label=test_labels.numpy())


if __name__ == "__main__":
    main()
