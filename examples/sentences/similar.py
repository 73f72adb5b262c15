"""How similar sentences are, by a sentence encoder that was compiled ahead of time: what `main.c` does, in Python.

    pip install ../../runtime/python tokenizers
    make TFC=path/to/tfc bert/bert.o                             or: tfc.compile(MODEL, name="bert", output="bert")
    python similar.py bert VOCABULARY SENTENCE SENTENCE...       VOCABULARY: the vocab.txt of the model
"""

import sys

import numpy as np
from tokenizers import BertWordPieceTokenizer

import tfc

MAX_TOKENS = 128


def embed(model, tokenizer, sentences):
    """The mean of what the model says about the tokens of each sentence, of length 1: `[sentences, size]`."""
    batch = tokenizer.encode_batch(sentences)
    ids, mask, types = (np.array([getattr(e, what) for e in batch]) for what in ("ids", "attention_mask", "type_ids"))
    hidden = model(input_ids=ids, attention_mask=mask, token_type_ids=types)["last_hidden_state"]
    mean = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


if __name__ == "__main__":
    bundle, vocabulary, *sentences = sys.argv[1:]
    tokenizer = BertWordPieceTokenizer(vocabulary, lowercase=True)
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    embeddings = embed(tfc.load(bundle), tokenizer, sentences)
    for row, sentence in zip(embeddings @ embeddings.T, sentences):
        print(*(f"{product:7.4f}" for product in row), "", sentence)
