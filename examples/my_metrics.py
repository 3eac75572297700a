"""A measure of your own. Copy this file to the root of your project, next to configs/, and add to configs/config.yaml:

    modules: [my_metrics]

It is then in every table (`F3_macro`, and `F3_` with each label) and can choose the best epoch: `ipbes train -m minilm -bm eval_F3_macro`.
"""
import numpy as np
from sklearn.metrics import fbeta_score

from ipbes_classifier.metrics import register_metric


@register_metric('F3')
def f3(
    y:np.ndarray,      # (n,) 0/1 labels
    preds:np.ndarray,  # (n,) 0/1 decisions
)->float:              # 0 to 1; NaN if undefined
    "F-measure that weighs recall three times as much as precision, for those who must not miss a paper."
    return fbeta_score(y, preds, beta=3, zero_division=np.nan)
