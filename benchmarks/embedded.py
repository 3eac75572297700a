"Vectors of texts by the packaged encoder as it was published: what a benchmark can put a linear classifier on. Each finished part stays done."
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ipbes_classifier.encoders import encoder_source, length_batches
from ipbes_classifier.files import atomic_path, obj_hash

PART = 2000 # texts that are kept together


def embed(tokenizer, model, texts: Sequence[str], length: int) -> np.ndarray:
    "(n, width) means of the last layer over the first `length` tokens, of length 1."
    import torch
    encoded = [dict(input_ids=i) for i in tokenizer(list(texts), truncation=True, max_length=length)['input_ids']]
    out = np.zeros((len(texts),model.config.hidden_size), np.float32)
    with torch.inference_mode():
        for rows in length_batches([len(e['input_ids']) for e in encoded], 2048):
            x = tokenizer.pad([encoded[i] for i in rows], return_tensors='pt')
            mask = x['attention_mask'][:,:,None]
            out[rows] = ((model(**x).last_hidden_state*mask).sum(1)/mask.sum(1)).numpy()
    return out/np.linalg.norm(out, axis=1, keepdims=True)


def embeddings(texts: Sequence[str], length: int, work: Path) -> np.ndarray:
    "(n, width) vectors of texts; kept in `work`, a file for some texts and this length."
    source,loaded,parts = encoder_source('minilm'),(),[]
    order = np.argsort([len(t) for t in texts], kind='stable') # texts of a part are of one length, so that little is padded
    for rows in np.array_split(order, -(-len(texts)//PART)):
        some = [texts[i] for i in rows]
        path = work/f'{obj_hash([some,length])[:16]}.npy'
        if not path.exists():
            if not loaded:
                from transformers import AutoModel, AutoTokenizer
                loaded = AutoTokenizer.from_pretrained(source),AutoModel.from_pretrained(source).eval()
            work.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as tmp, open(tmp,'wb') as f: np.save(f, embed(*loaded, some, length))
            print(f'{path}: {len(some)} texts', flush=True)
        parts.append(np.load(path))
    out = np.concatenate(parts)
    return out[np.argsort(order,kind='stable')]
