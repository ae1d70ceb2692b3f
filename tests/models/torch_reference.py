"""PyTorch networks with random weights. PyTorch is imported on first use only."""

from .random_inputs import images, kernel_std


def randomised(model, seed=0):
    """Randomises every tensor of a torch model, so that no zero or one hides a mistake."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.ndim > 1:
                std = kernel_std(name, tensor[0].numel())
                tensor.copy_(std * torch.randn(tensor.shape, generator=generator))
            elif name.endswith(("weight", "gamma")):
                tensor.copy_(0.7 + 0.6 * torch.rand(tensor.shape, generator=generator))
            else:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


def _norms(model):
    import torch

    return [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def comparable(model):
    """A torch model with random weights whose training mode is comparable with ours.

    Dropout is off. Running averages have momentum 0.1 and, as ours, average the biased variance;
    PyTorch averages the unbiased one, which is n / (n - 1) times as large.
    """

    def bias(norm, inputs, _):
        if norm.training:
            x = inputs[0].detach()
            excess = x.var((0, 2, 3)) / (x.numel() / x.shape[1])
            # Not in place: the backward pass needs the old tensor.
            norm.running_var = norm.running_var - norm.momentum * excess

    for module in model.modules():
        if type(module).__name__ in ("Dropout", "StochasticDepth"):
            module.p = 0.0
    for norm in _norms(model):
        norm.momentum = 0.1
        norm.register_forward_hook(bias)
    return randomised(model)


def calibrated(model):
    """Sets the model's running statistics to values near those of random images.

    Otherwise signals would vanish or explode in a deep network.
    """
    import torch

    norms, generator = _norms(model), torch.Generator().manual_seed(3)
    model.eval()
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    if norms:
        with torch.no_grad():
            model(torch.tensor(images(224, batch=4)).permute(0, 3, 1, 2))
    for norm in norms:
        norm.momentum = 0.1
        about = 0.6 * torch.rand((2, norm.num_features), generator=generator) - 0.3
        norm.running_mean = norm.running_mean + about[0] * norm.running_var.sqrt()
        norm.running_var = norm.running_var * (1 + about[1])
    return model


def stages(model, x, modules, train=False):
    """Returns a torch model's logits, and the outputs of the named modules as NHWC maps."""
    import torch

    kept, hooks = {}, []
    for name in modules:
        hooks.append(
            model.get_submodule(name).register_forward_hook(
                lambda _, __, out, name=name: kept.__setitem__(name, out)
            )
        )
    model.train(train)
    with torch.no_grad():
        logits = model(torch.tensor(x).permute(0, 3, 1, 2))
    for hook in hooks:
        hook.remove()
    return logits.numpy(), [kept[name].permute(0, 2, 3, 1).numpy() for name in modules]


def running(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "running_" in k}
