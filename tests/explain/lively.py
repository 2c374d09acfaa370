"""Networks as training leaves them, without training."""

from torch import nn


def enliven(model):
    """Give every BatchNorm statistics and weights that are not the neutral ones; return the model."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.3, 0.3)
    return model
