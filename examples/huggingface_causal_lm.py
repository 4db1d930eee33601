"""``FusedLoss(model)``: a Hugging Face causal language model whose training loss comes from ``nearlinear.linear_cross_entropy``: the logits
of a training step never exist. It changes this one model, until undone:

    with FusedLoss(model):
        trainer.train()

    handle = FusedLoss(model)   # or by hand
    handle.undo()

Only calls with ``labels`` in training mode change: their output has ``logits=None``. Evaluation and ``generate()`` are untouched. Labels
are shifted by one, ``ignore_index`` and ``num_items_in_batch`` mean what they mean to transformers.

    python examples/huggingface_causal_lm.py            # a small random Llama, both losses in turn; needs transformers
    python examples/huggingface_causal_lm.py --quick    # seconds
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from contextlib import nullcontext
from typing import Any

import nearlinear
import torch
import torch.nn.functional as F
from nearlinear.bench.measure import peak_mb
from nearlinear.progress import progress
from torch import Tensor, nn


class FusedLoss:
    """Patches ``model.forward`` at construction. ``options`` go to :func:`nearlinear.linear_cross_entropy`, for example ``z_loss=1e-4``.

    A model that does anything to its logits between its head and its loss (a soft-cap, a scale) is refused at its first training step.
    """

    def __init__(self, model: Any, **options: Any) -> None:
        head = model.get_output_embeddings()
        if type(head) is not nn.Linear:
            raise TypeError(f"FusedLoss: the output embeddings of model must be a nn.Linear, got {type(head).__name__}")
        if isinstance(getattr(model.forward, "fused_loss", None), FusedLoss):
            raise ValueError("FusedLoss: model must not be patched already; call undo() of the first one")
        self.model, self.head, self.options = model, head, options
        self.before = vars(model).get("forward")  # another tool's patch, if there is one
        original = model.forward

        @functools.wraps(original)  # the Trainer reads the signature
        def forward(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("labels") is None or not model.training:
                return original(*args, **kwargs)
            return self._train(original, *args, **kwargs)

        forward.fused_loss = self
        model.forward = self.forward = forward

    def undo(self) -> None:
        if vars(self.model).get("forward") is not self.forward:
            raise RuntimeError("FusedLoss: model.forward was replaced after the patch, or undone already; undo the later change first")
        del self.model.forward
        if self.before is not None:
            self.model.forward = self.before

    def __enter__(self) -> Any:
        return self.model

    def __exit__(self, *_: object) -> None:
        self.undo()

    def _train(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """One call of the model in which the head hands the features on, and the loss takes them for logits."""
        handed: list[Tensor] = []

        def features(hidden: Tensor) -> Tensor:
            handed.append(hidden)
            return hidden

        def loss(logits: Tensor, labels: Tensor, *_: Any, **rest: Any) -> Tensor:
            if len(handed) != 1 or logits is not handed[0]:
                raise NotImplementedError(
                    f"FusedLoss: {type(self.model).__name__} changes its logits before its loss, which is not supported"
                )
            return self._loss(logits, labels, **rest)

        own_loss = vars(self.model).get("_loss_function")
        self.head.forward, self.model.loss_function = features, loss
        try:
            output = original(*args, **kwargs)
        finally:
            del self.head.forward
            if own_loss is None:
                del self.model._loss_function
            else:
                self.model.loss_function = own_loss
        if isinstance(output, tuple):  # return_dict=False: loss, logits, more
            return (output[0], *output[2:])
        output.logits = None
        return output

    def _loss(
        self,
        features: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        if shift_labels is None:
            shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]  # the label of a token is the next token
        return nearlinear.linear_cross_entropy(
            features,
            self.head.weight,
            shift_labels.to(features.device),
            linear_bias=self.head.bias,
            ignore_index=ignore_index,
            normalizer=num_items_in_batch,
            **self.options,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=512, help="tokens of one of the two sequences of a batch")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="1,000 tokens in the vocabulary, 2 steps of 32")
    options = parser.parse_args()
    if options.quick:
        options.vocabulary, options.width, options.tokens, options.steps = 1000, 32, 32, 2
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": options.width, "intermediate_size": 2 * options.width, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=options.vocabulary, max_position_embeddings=options.tokens, **sizes)).train()
    ids = torch.randint(options.vocabulary, (2, options.tokens))

    def step() -> Tensor:
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return loss.detach()

    patches = {"transformers": nullcontext, "nearlinear": functools.partial(FusedLoss, model)}
    times: dict[str, list[float]] = {name: [] for name in patches}
    found = {}
    for _ in progress(range(options.steps + 1), desc="both losses in turn"):  # the first step warms up
        for name, patch in patches.items():
            with patch():
                begin = time.perf_counter()
                loss = step()
                times[name].append(1e3 * (time.perf_counter() - begin))
                found[name] = (loss, [p.grad.clone() for p in model.parameters()])
    (theirs, their_gradients), (ours, our_gradients) = found.values()
    torch.testing.assert_close(ours, theirs)
    for gradient, expected in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    found.clear()
    print(f"loss {theirs:.6f} (transformers), {ours:.6f} (nearlinear); the gradients of all parameters agree")
    print(f"{'':12} {'step, ms':>10} {'peak memory above the parameters, MB':>40}")
    for name, patch in patches.items():
        model.zero_grad()
        with patch():
            peak = peak_mb(step, torch.device("cpu"))
        print(f"{name:12} {statistics.median(times[name][1:]):>10.0f} {'not known' if peak is None else format(peak, '.0f'):>40}")


if __name__ == "__main__":
    main()
