"""The program and the script in ``examples/sentences`` agree."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import BertWordPieceTokenizer

from .conftest import FIXTURES

FOLDER = FIXTURES.parent / "examples" / "sentences"
VOCABULARY = FIXTURES / "sentences_vocab.txt"
SENTENCES = [
    "A man eats bread in the garden.",
    "The man was eating SOME bread!",
    "Two children play with a red car.",
    "don't [unk] x42, (quietness)",
    "",
    "dog " * 200,
]

needs_cc = pytest.mark.skipif(shutil.which("cc") is None or shutil.which("make") is None, reason="there is no C compiler, or no make")


def similarities(text: str) -> np.ndarray:
    return np.array([line.split()[: len(SENTENCES)] for line in text.splitlines()], np.float64)


@needs_cc
def test_sentences_in_c_and_python(tmp_path: Path) -> None:
    example = tmp_path / "sentences"
    shutil.copytree(FOLDER, example, ignore=shutil.ignore_patterns("bert", "similar"))
    model = FIXTURES / "sentences.onnx"
    subprocess.run(["make", "-s", f"TFC={Path(sys.executable).with_name('tfc')}", f"MODEL={model}"], cwd=example, check=True)
    in_c = subprocess.run(["./similar", VOCABULARY, *SENTENCES], cwd=example, check=True, capture_output=True, text=True).stdout
    in_python = subprocess.run(
        [sys.executable, FOLDER / "similar.py", example / "bert", VOCABULARY, *SENTENCES], check=True, capture_output=True, text=True
    ).stdout
    c, python = similarities(in_c), similarities(in_python)
    np.testing.assert_allclose(c, python, atol=2e-4)
    np.testing.assert_allclose(np.diag(c), 1)
    # The first two share most of their words.
    assert c[0, 1] > c[0, 4] and np.unique(c.round(3)).size > 10


@needs_cc
def test_tokens_in_c_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    library = tmp_path / "wordpiece.so"
    subprocess.run(["cc", "-std=c99", "-O1", "-shared", "-fPIC", "-o", library, FOLDER / "wordpiece.c"], check=True)
    c = ctypes.CDLL(os.fspath(library))
    c.wordpiece_open.restype = ctypes.c_void_p
    c.wordpiece_encode.restype = ctypes.c_size_t
    c.wordpiece_encode.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int64), ctypes.c_size_t]
    opened = c.wordpiece_open(os.fsencode(VOCABULARY))
    assert opened and not c.wordpiece_open(os.fsencode(FOLDER / "Makefile")) and not c.wordpiece_open(b"/nowhere")

    reference = BertWordPieceTokenizer(os.fspath(VOCABULARY), lowercase=True)
    words = [w.removeprefix("##") for w in VOCABULARY.read_text(encoding="utf-8").split() if w.isascii() and not w.startswith("[")]
    draw = random.Random(1)
    texts = [*SENTENCES, "x" * 100, "x" * 101, "ж" * 100, "ж" * 101, "a\tb\nc\rd", "[CLS", "~~~"]
    for _ in range(2000):
        parts = [draw.choice([*words, " ", " ", " ", "\t", "Q", "'", "ж"]) for _ in range(draw.randrange(40))]
        texts.append("".join(draw.choice([str.upper, str.lower])(p) if p.isascii() else p for p in parts))
    for text in texts:
        for most in (2, 7, 512):
            ids = (ctypes.c_int64 * most)()
            count = c.wordpiece_encode(opened, text.encode(), ids, most)
            reference.enable_truncation(most)
            assert ids[:count] == reference.encode(text).ids, text

