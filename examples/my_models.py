"""A model of your own. Copy this file to the root of your project, next to configs/, and name it where a model is asked for:

    ipbes train -m my_models:KnnModel
    IPBES_MODULES=my_models ipbes predict papers.csv -m results/final_model/best_model_cross_val_neighbours_KnnModel_fold-0 -o scored.csv
"""
import os
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import load_npz, save_npz
from sklearn.feature_extraction.text import HashingVectorizer

from ipbes_classifier.config import Input
from ipbes_classifier.models import input_texts


class KnnModel:
    "The share of the most similar training papers that carry a label."
    loss = 'neighbours'  # stands in file names, where other models have what they minimise

    def __init__(self, labels:list[str], recipe:Input, n_neighbors:int=10):
        self.labels,self.recipe,self.n_neighbors = labels,recipe,n_neighbors

    def vectors(self, records:pd.DataFrame):
        "Hashed words of each record, of length 1; nothing is learnt, so nothing but the training papers has to be saved."
        first,second = input_texts(records, self.recipe)
        texts = [' '.join(t) for t in zip(first,second)] if second else first
        return HashingVectorizer(n_features=2**16, alternate_sign=False, dtype=np.float32).transform(texts)

    def fit(self, train:pd.DataFrame, dev:pd.DataFrame)->'KnnModel':
        "Keep the training papers; `dev` is not read."
        self.x,self.y = self.vectors(train),train[self.labels].to_numpy(dtype=np.int8)
        return self

    def scores(self, records:pd.DataFrame)->np.ndarray:
        "(n, n_labels) between 0 and 1."
        similar = (self.vectors(records)@self.x.T).toarray()
        nearest = np.argsort(-similar, axis=1, kind='stable')[:,:self.n_neighbors]
        weight = np.take_along_axis(similar, nearest, 1)+1e-6
        return np.clip((self.y[nearest]*weight[:,:,None]).sum(1)/weight.sum(1,keepdims=True), 0, 1)

    def save(self, folder:str|os.PathLike)->None:
        "Write what was learnt, as numbers; what `__init__` was told is saved by the package."
        save_npz(Path(folder)/'vectors.npz', self.x)
        np.save(Path(folder)/'labels.npy', self.y)

    def load(self, folder:str|os.PathLike)->None:
        "Read what `save` wrote."
        self.x,self.y = load_npz(Path(folder)/'vectors.npz'),np.load(Path(folder)/'labels.npy')
