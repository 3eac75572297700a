"""A loss of your own. Copy this file to the root of your project, next to configs/, and name it where a loss is asked for:

    ipbes train -m minilm -l my_losses:asymmetric 'training.loss_settings={my_losses:asymmetric: {gamma_neg: 2}}'
"""
import torch
from torch.nn.functional import logsigmoid


def asymmetric(
    logits:torch.Tensor,  # (n, n_labels)
    y:torch.Tensor,       # (n, n_labels) 0/1
    gamma_neg:float=4.,   # how fast easy negatives fade, 0: not at all
    gamma_pos:float=1.,   # how fast easy positives fade
    margin:float=.05,     # negatives with a probability below it count nothing
)->torch.Tensor:          # (n, n_labels), 0 or more
    """Asymmetric loss of each cell.

    Ridnik, Ben-Baruch, Zamir, Noy, Friedman, Protter and Zelnik-Manor (2021), Asymmetric loss for multi-label classification,
    arXiv 2009.14119, equations 4 to 7. With both gammas and the margin 0 it is the binary cross-entropy.
    """
    p = logits.sigmoid()
    shifted = (p-margin).clamp(min=1e-8)
    positive = y*(1-p).clamp(min=1e-8)**gamma_pos*logsigmoid(logits)
    negative = (1-y)*shifted**gamma_neg*torch.log1p(-shifted.clamp(max=1-1e-6))
    return -(positive+negative)
