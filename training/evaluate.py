# SPDX-License-Identifier: Apache-2.0
"""How good a checkpoint is: `python -m training.evaluate --checkpoint DIR --data DIR [--split validation|all] --json`.

Perplexity is per token of the checkpoint's own tokenizer, EOS included; with --gpt2-tokenizer also per GPT-2 token, so
that models with other tokenizers can be compared. Words are those of greedy captions, as served.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast, VisionEncoderDecoderModel

from captioner.query import QUERY_WORDS, words_of
from training.caption_dataset import IGNORED, tokenize
from training.caption_model import normalise
from training.prepare_data import ProductSet, is_validation, load_products, read_styles
from training.word_metrics import word_metrics

BATCH = 128  # photos


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/fashion-small"))
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and styles.csv")
    parser.add_argument("--split", choices=("validation", "all"), default="validation")
    parser.add_argument("--limit", type=int, help="use only the first N products of the split")
    parser.add_argument("--gpt2-tokenizer", type=Path, help="folder with GPT-2's vocab.json and merges.txt")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


@torch.no_grad()
def caption_all(
    model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerFast, data: ProductSet
) -> tuple[list[str], float, int]:
    """Greedy captions of all photos; the loss of the true names in nats, and over how many tokens."""
    max_tokens = model.config.decoder.n_positions
    labels = tokenize([product.name for product in data.products], tokenizer, max_tokens)
    captions: list[str] = []
    nats, tokens = 0.0, 0
    for start in tqdm(range(0, len(data), BATCH), desc="captioning", unit="batch"):
        photos = normalise(torch.from_numpy(data.pixels[start : start + BATCH]).permute(0, 3, 1, 2).float())
        target = labels[start : start + BATCH]
        encoded = model.encoder(pixel_values=photos)
        logits = model(encoder_outputs=encoded, labels=target).logits
        nats += float(
            torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="sum"
            )
        )
        tokens += int((target != IGNORED).sum())
        rows = model.generate(encoder_outputs=encoded, do_sample=False, num_beams=1, max_length=max_tokens + 1)
        captions += [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    return captions, nats, tokens


def count_gpt2_tokens(names: Sequence[str], folder: Path) -> int:
    """Tokens of all names in GPT-2's own byte-level BPE, one EOS each."""
    tokenizer = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return sum(len(encoding.ids) + 1 for encoding in tokenizer.encode_batch(list(names)))


def most_frequent_pair(folder: Path) -> str:
    """The two last words most training names have: what guessing without looking would say."""
    names = (product.name for product in read_styles(folder, Counter()) if not is_validation(product.name))
    pairs = Counter(" ".join(words_of(name)[-QUERY_WORDS:]) for name in names)
    return pairs.most_common(1)[0][0]


def main() -> None:
    args = parse_args()
    model = VisionEncoderDecoderModel.from_pretrained(args.checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    height, width = model.config.encoder.image_size
    data = load_products(
        args.data,
        height=height,
        width=width,
        fit=model.config.image_fit,
        limit=args.limit,
        only=lambda product: args.split == "all" or is_validation(product.name),
    )
    captions, nats, tokens = caption_all(model, tokenizer, data)
    names = [product.name for product in data.products]
    guess = most_frequent_pair(args.data)
    figures: dict[str, object] = {
        "checkpoint": str(args.checkpoint),
        "split": args.split,
        "n": len(data),
        "left_out": dict(data.skipped),
        "loss_nats_per_token": nats / tokens,
        "perplexity_per_token": math.exp(nats / tokens),
        "mean_words": float(np.mean([len(words_of(caption)) for caption in captions])),
        **dataclasses.asdict(word_metrics(captions, names)),
        "baseline_most_frequent_pair": {
            "pair": guess,
            **dataclasses.asdict(word_metrics([guess] * len(names), names)),
        },
        "examples": [
            {"name": name, "caption": caption} for name, caption in list(zip(names, captions, strict=True))[:10]
        ],
    }
    if args.gpt2_tokenizer is not None:
        figures["perplexity_per_gpt2_token"] = math.exp(nats / count_gpt2_tokens(names, args.gpt2_tokenizer))
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    for key, value in figures.items():
        if isinstance(value, float):
            print(f"{key:<24}{value:8.4f}")
    print(f"{'n':<24}{len(data):8d}")
    for name, caption in list(zip(names, captions, strict=True))[:10]:
        print(f"  {name:<50} -> {caption}")


if __name__ == "__main__":
    main()
