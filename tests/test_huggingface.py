"""examples/huggingface_causal_lm.py: the patched model trains alike, evaluates and generates as before, and is the old one when undone."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed: 190 MB, optional")
PATH = Path(__file__).resolve().parents[1] / "examples/huggingface_causal_lm.py"
VOCABULARY, WIDTH = 61, 16


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("huggingface_causal_lm", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FusedLoss = example().FusedLoss


def gpt2() -> Any:
    """Its head is tied to the embedding."""
    sizes = {"n_positions": 32, "n_embd": WIDTH, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=VOCABULARY, **sizes, **dropouts)).train()


def llama() -> Any:
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=VOCABULARY, **sizes)).train()


MODELS = pytest.mark.parametrize("make", [gpt2, llama])


def batch() -> dict[str, Tensor]:
    ids = torch.randint(VOCABULARY, (2, 11))
    labels = ids.clone()
    labels[0, :4] = -100
    return {"input_ids": ids, "labels": labels}


def trained(model: Any, **inputs: Any) -> tuple[Any, list[Tensor]]:
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    return output, [p.grad.clone() for p in model.parameters()]


def assert_same(found: tuple[Any, list[Tensor]], expected: tuple[Any, list[Tensor]]) -> None:
    torch.testing.assert_close(found[0].loss, expected[0].loss)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs)


@MODELS
@pytest.mark.parametrize("extra", [{}, {"num_items_in_batch": 29}, {"num_items_in_batch": torch.tensor(29)}])
def test_loss_and_gradients_before_during_and_after(make: Any, extra: dict[str, Any]) -> None:
    model, inputs = make(), {**batch(), **extra}
    before, state = trained(model, **inputs), dict(vars(model))
    with FusedLoss(model) as patched:
        assert patched is model
        during = trained(model, **inputs)
    after = trained(model, **inputs)
    assert_same(during, before)
    assert_same(after, before)
    assert type(during[0]) is type(before[0])
    assert during[0].logits is None
    assert torch.equal(after[0].logits, before[0].logits)
    assert vars(model) == state
    assert "forward" not in vars(model.get_output_embeddings())


def test_the_logits_never_exist() -> None:
    """No tensor of batch x tokens x vocabulary is made in a patched step."""
    made: set[tuple[int, ...]] = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            made.update(tuple(t.shape) for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor))
            return result

    model, inputs = llama(), batch()
    logits = (*inputs["labels"].shape, VOCABULARY)
    with FusedLoss(model), Watch():
        model(**inputs)
    assert made
    assert logits not in made
    with Watch():
        model(**inputs)
    assert logits in made


@MODELS
def test_evaluation_and_generation_are_untouched(make: Any) -> None:
    model, inputs = make().eval(), batch()
    expected = model(**inputs)
    tokens = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    generated = model.generate(inputs["input_ids"], attention_mask=torch.ones_like(inputs["input_ids"]), **tokens)
    with FusedLoss(model):
        found = model(**inputs)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.loss, expected.loss)
        again = model.generate(inputs["input_ids"], attention_mask=torch.ones_like(inputs["input_ids"]), **tokens)
        assert torch.equal(again, generated)
        model.train()
        assert model(input_ids=inputs["input_ids"]).logits is not None  # no labels


def test_forms_of_the_call() -> None:
    model, inputs = llama(), batch()
    expected = model(**inputs)
    shifted = torch.nn.functional.pad(inputs["labels"], (0, 1), value=-100)[:, 1:]
    signature = inspect.signature(model.forward)
    with FusedLoss(model, z_loss=1e-3):
        assert inspect.signature(model.forward) == signature  # the Trainer reads it
        assert model(**inputs).loss > expected.loss
    with FusedLoss(model):
        (loss, *rest) = model(**inputs, return_dict=False, use_cache=False)
        assert rest == []
        torch.testing.assert_close(loss, expected.loss)
        torch.testing.assert_close(model(**inputs, shift_labels=shifted).loss, expected.loss)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(model(**inputs).loss, expected.loss, rtol=2e-2, atol=0)


def test_an_own_loss_function_comes_back() -> None:
    model, inputs = llama(), batch()

    def own(logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
        return logits.mean()

    model.loss_function = own
    with FusedLoss(model):
        model(**inputs)
        assert model.loss_function is own
    assert model.loss_function is own


def test_what_is_refused() -> None:
    model, inputs = llama(), batch()
    handle = FusedLoss(model)
    with pytest.raises(ValueError, match="must not be patched already"):
        FusedLoss(model)
    original, model.forward = model.forward, lambda *args, **kwargs: None
    with pytest.raises(RuntimeError, match="was replaced after the patch"):
        handle.undo()
    model.forward = original
    handle.undo()
    with pytest.raises(RuntimeError, match="undone already"):
        handle.undo()

    changed = copy.deepcopy(model)
    head = changed.lm_head
    changed.set_output_embeddings(nn.Sequential(head))
    with pytest.raises(TypeError, match=r"must be a nn\.Linear, got Sequential"):
        FusedLoss(changed)

    capped = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
            num_key_value_heads=1, final_logit_softcapping=30.0,
        )
    ).train()  # fmt: skip
    with FusedLoss(capped), pytest.raises(NotImplementedError, match="Gemma2ForCausalLM changes its logits before its loss"):
        capped(**inputs)
    assert capped(**inputs).logits.shape == (2, 11, VOCABULARY)  # the failed call left nothing behind


def test_the_example_runs() -> None:
    done = subprocess.run([sys.executable, str(PATH), "--quick"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "the gradients of all parameters agree" in done.stdout
