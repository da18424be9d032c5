"""Liger's kernels: what is needed for them, and that they compute the same."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import tiny
from swift.core.errors import MissingPackage, ModelError
from swift.models.liger import use_liger

HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None


@pytest.mark.skipif(HAS_LIGER, reason="Liger is installed")
def test_without_the_package_the_line_that_installs_it_is_said():
    with pytest.raises(MissingPackage, match=r"--use_liger_kernel true needs .*pip install 'swiftlet\[liger\]'"):
        use_liger(tiny.model())


@pytest.mark.skipif(not HAS_LIGER or torch.cuda.is_available(), reason="needs Liger and no GPU")
def test_without_a_gpu_it_is_refused():
    with pytest.raises(ModelError, match="needs a GPU"):
        use_liger(tiny.model())


@pytest.mark.gpu
@pytest.mark.parameter("use_liger_kernel")
@pytest.mark.skipif(not (HAS_LIGER and torch.cuda.is_available()), reason="needs Liger and a GPU")
def test_the_kernels_give_the_logits_and_gradients_of_the_model():
    from swift.models.output_layer import projection

    ids = torch.arange(5, 60, device="cuda")[None]
    results = []
    for liger in (False, True):
        model = tiny.model().cuda().train()
        if liger:
            use_liger(model)
            assert "Liger" in repr(model.model.layers[0].mlp.forward) + repr(model.model.norm.forward)
        assert projection(model) is not None
        logits = model(ids, use_cache=False).logits
        logits.square().sum().backward()
        results.append((logits.detach(), model.model.embed_tokens.weight.grad))
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not (HAS_LIGER and torch.cuda.is_available()), reason="needs Liger and a GPU")
def test_a_model_without_kernels_is_refused():
    import architectures

    with pytest.raises(ModelError, match="Liger has no kernels for mamba"):
        use_liger(architectures.model("mamba"))
