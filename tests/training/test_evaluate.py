# SPDX-License-Identifier: Apache-2.0
"""The command on drawn products and a captioner of random weights: every figure is there and is what it says."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from drawings.draw_samples import training_samples  # noqa: E402
from tests.fakes.phone_samples import write_phone_photos  # noqa: E402
from tests.training.test_captioning import HEIGHT, WIDTH, D, add_query_head, checkpoint  # noqa: E402
from tests.training.test_perplexity import NIKE, gpt2  # noqa: E402
from training.captioning import CLASSES_FILE, HEADS_FILE, CheckpointCaptioner, Head  # noqa: E402
from training.evaluate import evaluate, examples, head_figures, main, parse_args  # noqa: E402
from training.evaluation_table import table  # noqa: E402
from training.label_words import label_accuracy  # noqa: E402
from training.photo_degradations import DEGRADATIONS  # noqa: E402
from training.prepare_data import STYLE_COLUMNS, Product, is_validation, load_products  # noqa: E402
from training.word_metrics import word_metrics  # noqa: E402

pytestmark = pytest.mark.torch

TRAINING, VALIDATION = 16, 6  # products


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, `gpt2-tokenizer` beside it, and `checkpoint` with a head for colours."""
    root = tmp_path_factory.mktemp("evaluation")
    (root / "data" / "images").mkdir(parents=True)
    wanted = {True: VALIDATION, False: TRAINING}
    with (root / "data" / "styles.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, STYLE_COLUMNS, restval="")
        writer.writeheader()
        for i, (picture, row) in enumerate(training_samples(800, 3, 60, 80)):
            row = {**row, "id": str(i), "productDisplayName": f"Nike {i} {row['productDisplayName']}"}
            held_back = is_validation(row["productDisplayName"])
            if wanted[held_back]:
                wanted[held_back] -= 1
                picture.save(root / "data" / "images" / f"{i}.jpg", quality=90)
                writer.writerow({key: value for key, value in row.items() if key in STYLE_COLUMNS})
        writer.writerow({"id": "no-photo", "productDisplayName": held_back_name()})
    assert wanted == {True: 0, False: 0}
    checkpoint(root / "checkpoint", max_tokens=48)
    colours = ["Black", "Blue", "Red"]
    weights = torch.randn(3, D, generator=torch.Generator().manual_seed(1))
    save_file({"colour.weight": weights, "colour.bias": torch.zeros(3)}, root / "checkpoint" / HEADS_FILE)
    (root / "checkpoint" / CLASSES_FILE).write_text(json.dumps({"colour": colours}), encoding="utf-8")
    gpt2(root / "gpt2-tokenizer", NIKE)
    return root


def held_back_name() -> str:
    return next(name for i in range(1000) if is_validation(name := f"Puma {i} Red Cap"))


def arguments(folder: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(folder / "checkpoint"), "--data", str(folder / "data"), *more]


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict[str, Any]:
    """Of the plain command."""
    return evaluate(parse_args(arguments(folder)))


@pytest.fixture(scope="module")
def captioned(folder: Path) -> tuple[list[str], list[Product]]:
    """The captions the figures are about, by another way, and their products."""
    data = load_products(
        folder / "data", height=HEIGHT, width=WIDTH, fit="pad", only=lambda product: is_validation(product.name)
    )
    return CheckpointCaptioner.load(folder / "checkpoint").describe(data.pixels).captions, data.products


def test_plain_command_has_every_figure(figures: dict[str, Any]) -> None:
    names = {
        "n", "perplexity_per_gpt2_token", "perplexity_paper_protocol", "last_two_exact", "last_two_normalised",
        "last_word_accuracy", "second_last_accuracy", "order_free_accuracy", "whole_caption_exact", "bleu4",
        "rouge_l", "cider", "type_accuracy", "colour_accuracy", "head_colour_accuracy", "ceiling", "baselines",
        "determinism", "robustness", "examples",
    }  # fmt: skip
    assert names <= figures.keys()
    assert "head_type_accuracy" not in figures  # this checkpoint has no such head
    assert (figures["checkpoint"], figures["split"], figures["n"]) == ("checkpoint", "validation", VALIDATION)
    assert figures["left_out"] == {"no photo": 1}
    assert figures["notes"] == []
    assert list(figures["robustness"]["accuracies"]) == ["clean", *DEGRADATIONS]


def test_figures_are_those_of_the_captions(figures: dict[str, Any], captioned: tuple[list[str], list[Product]]) -> None:
    captions, products = captioned
    words = dataclasses.asdict(word_metrics(captions, [product.name for product in products]))
    labels = dataclasses.asdict(label_accuracy(captions, products))
    for name, value in {**words, **labels}.items():
        assert figures[name] == value, name
    clean = figures["robustness"]["accuracies"]["clean"]
    assert clean == {name: figures[name] for name in clean}


def test_perplexity_is_that_of_the_models_own_loss(
    figures: dict[str, Any], folder: Path, captioned: tuple[list[str], list[Product]]
) -> None:
    captioner = CheckpointCaptioner.load(folder / "checkpoint")
    _, products = captioned
    data = load_products(
        folder / "data", height=HEIGHT, width=WIDTH, fit="pad", only=lambda product: is_validation(product.name)
    )
    nats, gpt2_tokens = 0.0, 0
    for photo, product in zip(data.pixels, products, strict=True):
        labels = captioner.labels([product.name])
        logits = captioner.logits(captioner.encode(photo[None]), labels)
        nats += float(torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="sum"))
        # One token a byte, less one for each of its merges; and EOS.
        gpt2_tokens += len(product.name.encode()) - sum(map(product.name.count, ("Ni", "ke", "Nike"))) + 1
    assert figures["names_cut"] == 0
    assert np.log(figures["perplexity_per_gpt2_token"]) == pytest.approx(nats / gpt2_tokens, rel=1e-4)
    assert figures["perplexity_paper_protocol"] != figures["perplexity_per_gpt2_token"]


def test_ceiling_is_right_by_construction_where_it_says_so(figures: dict[str, Any]) -> None:
    whole, last_two = figures["ceiling"]["true_name"], figures["ceiling"]["true_last_two_words"]
    assert whole["last_two_exact"] == last_two["last_two_exact"] == whole["whole_caption_exact"] == 1
    assert last_two["whole_caption_exact"] == 0
    assert 0 < whole["colour_accuracy"] <= 1


def test_baselines_are_names_of_training_products(figures: dict[str, Any]) -> None:
    found = figures["baselines"]
    assert found["known_photos"] == TRAINING
    assert len(found["pair"].split()) == 2
    for name in ("most_frequent_pair", "nearest_by_pixel", "nearest_by_embedding"):
        assert found[name]["whole_caption_exact"] == 0, name
        assert "cider" in found[name]
        assert "type_accuracy" in found[name]


def test_same_photos_are_captioned_the_same_again(figures: dict[str, Any], folder: Path) -> None:
    determinism = figures["determinism"]
    assert determinism["captions_compared"] == 3 * VALIDATION
    assert determinism["captions_equal"] == determinism["captions_compared"]
    again = evaluate(parse_args(arguments(folder)))
    assert again["examples"] == figures["examples"]
    assert again["robustness"] == figures["robustness"]


def test_examples_are_those_with_the_smallest_hash_of_the_id() -> None:
    products = [Product(str(i), f"name {i}", "", "", "") for i in range(50)]
    captions = [f"caption {i}" for i in range(50)]
    served = [f"shown {i}" for i in range(50)]
    chosen = examples(captions, served, products, count=3)
    ids = sorted((str(i) for i in range(50)), key=lambda one: hashlib.sha256(one.encode()).hexdigest())[:3]
    assert [one["id"] for one in chosen] == ids
    assert examples(captions[::-1], served[::-1], products[::-1], count=3) == chosen
    number = ids[0]
    assert chosen[0] == {
        "id": number, "name": f"name {number}", "caption": f"caption {number}", "served": f"shown {number}",
    }  # fmt: skip


def test_value_a_head_does_not_know_counts_as_wrong() -> None:
    captioner: Any = type("Captioner", (), {})()
    captioner.heads = {"colour": Head(["Blue", "Red"], torch.eye(2), torch.zeros(2))}
    products = [Product(str(i), "x", "Shirts", colour, "") for i, colour in enumerate(["Blue", "Blue", "Taupe", ""])]
    embeddings = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    assert head_figures(captioner, embeddings, products) == {"head_colour_accuracy": 0.25}


# Flags


def test_json_is_one_object_and_bars_are_elsewhere(
    folder: Path, figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments(folder, "--json", "--skip", "determinism")])
    main()
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["notes"] == ["determinism: skipped"]
    assert "determinism" not in found
    assert {key: found[key] for key in ("n", "bleu4", "baselines")} == {
        key: figures[key] for key in ("n", "bleu4", "baselines")
    }
    assert "captions" in printed.err


def test_all_products_are_compared_with_each_other(folder: Path) -> None:
    skip = ("--skip", "determinism", "robustness")
    found = evaluate(parse_args(arguments(folder, "--split", "all", *skip)))
    assert found["n"] == found["baselines"]["known_photos"] == TRAINING + VALIDATION
    assert found["baselines"]["nearest_by_pixel"]["whole_caption_exact"] == 0


def test_limits_are_kept(folder: Path) -> None:
    limits = ("--limit", "4", "--training-limit", "5", "--robustness-photos", "2")
    found = evaluate(parse_args(arguments(folder, *limits)))
    assert (found["n"], found["baselines"]["known_photos"], found["robustness"]["n"]) == (4, 5, 2)
    assert found["determinism"]["photos"] == len(found["examples"]) == 4


@pytest.mark.parametrize("flag", ["--limit", "--training-limit", "--robustness-photos", "--phone-limit"])
def test_limit_of_nothing_is_refused(flag: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(arguments(folder, flag, "0"))
    assert f"{flag} is 0" in capsys.readouterr().err


def test_without_gpt2_its_figures_are_left_out_and_it_says_so(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "data", tmp_path / "data")
    skip = ("--skip", "baselines", "determinism", "robustness")
    lone = ["--checkpoint", str(folder / "checkpoint"), "--data", str(tmp_path / "data"), *skip]
    found = evaluate(parse_args(lone))
    assert not {"perplexity_per_gpt2_token", "perplexity_paper_protocol"} & found.keys()
    assert any("GPT-2" in note for note in found["notes"])
    named = evaluate(parse_args([*lone, "--gpt2-tokenizer", str(folder / "gpt2-tokenizer")]))
    assert {"perplexity_per_gpt2_token", "perplexity_paper_protocol"} <= named.keys()


@pytest.mark.parametrize("flag", ["--checkpoint", "--data", "--gpt2-tokenizer"])
def test_wrong_folder_is_told_in_one_sentence(
    flag: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments(folder, flag, str(tmp_path))])
    with pytest.raises(SystemExit, match=tmp_path.name):
        main()


def test_without_json_a_table_is_printed(
    folder: Path, figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    skip = ("--skip", "baselines", "determinism", "robustness")
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments(folder, *skip)])
    main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name, value in figures.items():
        if isinstance(value, float):
            assert [row[1] for row in rows if row[:1] == [name]] == [f"{value:.4f}"], name


# Phone photos

QUICK = ("--skip", "baselines", "determinism", "robustness")


@pytest.mark.parametrize("with_head", [False, True])
def test_phone_photos_add_their_figures_and_pictures(with_head: bool, folder: Path, tmp_path: Path) -> None:
    chosen = folder / "checkpoint"
    if with_head:
        chosen = Path(shutil.copytree(chosen, tmp_path / "checkpoint"))
        add_query_head(chosen)
    rows = write_phone_photos(tmp_path / "phone")
    flags = ("--phone", str(tmp_path / "phone"), "--pictures", str(tmp_path / "pictures"), *QUICK)
    found = evaluate(parse_args([*arguments(folder, *flags), "--checkpoint", str(chosen)]))
    json.dumps(found)
    phone = found["phone"]
    assert (phone["n"], phone["senders"]) == (8, 4)
    assert sum(row["n"] for row in phone["labels"].values()) == 8 < len(rows)
    assert ("query head" in phone["named"]) == with_head
    assert "articleType head" not in phone["named"]  # this checkpoint has a head for colours only
    assert sum(map(sum, phone["confusion"]["caption"]["counts"])) == 8
    sources = ["caption", *(["query head"] if with_head else [])]
    assert list(found["calibration"]) == sources
    assert found["no_product"]["groups"]["studio photos"]["n"] == VALIDATION
    assert ("no product" in found["no_product"]["auroc"]) == with_head
    assert any("query head" in note for note in found["notes"]) != with_head
    written = {path.name for path in (tmp_path / "pictures").iterdir()}
    names = [source.replace(" ", "-") for source in sources]
    assert written == {
        *(f"phone-confusion-{name}.{kind}" for name in names for kind in ("png", "json")),
        *(f"reliability-{name}.png" for name in names),
    }
    text = table(found)
    for part in ("8 phone photos", "95 % intervals over 4 senders", "reliability of words", "AUROC, highest query:"):
        assert part in text
    assert ("AUROC, no product:" in text) == with_head


def test_auxiliary_head_names_the_type_of_phone_photos(folder: Path, tmp_path: Path) -> None:
    write_phone_photos(tmp_path / "phone")
    chosen = Path(shutil.copytree(folder / "checkpoint", tmp_path / "checkpoint"))
    bias = torch.tensor([0.0, 100.0])
    save_file(
        {"article_type.weight": torch.zeros(2, D), "article_type.bias": bias}, chosen / HEADS_FILE
    )  # says "Shirts" of every photo
    (chosen / CLASSES_FILE).write_text(json.dumps({"article_type": ["Dresses", "Shirts"]}), encoding="utf-8")
    flags = ("--phone", str(tmp_path / "phone"), *QUICK)
    phone = evaluate(parse_args([*arguments(folder, *flags), "--checkpoint", str(chosen)]))["phone"]
    shirts = {label: row["articleType head"] for label, row in phone["labels"].items()}
    assert {label for label, share in shirts.items() if share} <= {"Shirt", "Blouse"}
    assert (
        phone["named"]["articleType head"]["mean"]
        == sum(row["n"] * row["articleType head"] for row in phone["labels"].values()) / 8
    )


def test_phone_flags_are_checked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_args(arguments(folder, "--pictures", "x"))
    assert "--pictures needs --phone" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments(folder, "--phone", str(tmp_path), *QUICK)])
    with pytest.raises(SystemExit, match=r"does not hold images/ and images\.csv"):
        main()
