# SPDX-License-Identifier: Apache-2.0
"""What the documents say is so: links lead somewhere, files, commands, flags and settings exist."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

import captrieve_client
from captrieve_client.messages import SearchOptions
from search_gateway.config import GatewayConfig, variable_of
from search_gateway.settings_page import SECTIONS, settings_page
from tests.conftest import ROOT

README = ROOT / "README.md"
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("checkpoints/fashion-small/README.md"),
        *(
            ROOT / folder / name
            for folder, name in (("client", "README.md"), ("training", "LOG.md"), ("export", "LOG.md"))
        ),
    ]
)
LOGS = {ROOT / "training" / "LOG.md", ROOT / "export" / "LOG.md", ROOT / "CHANGELOG.md"}  # these tell what once was
MAX_README_LINES = 150

# What a reader must find in the README, and in some document.
README_COMMANDS = ("captrieve search", "captrieve caption", "search_gateway", "search_gateway.healthcheck")
DOCUMENTED_MODULES = {
    "benchmarks.captioning",
    "benchmarks.catalog_speed",
    "benchmarks.latency",
    "benchmarks.observability",
    "benchmarks.page_latency",
    "benchmarks.photo_decoding",
    "benchmarks.query_rules",
    "benchmarks.retrieval",
    "benchmarks.robustness",
    "export.check_parity",
    "export.install_models",
    "export.roofline",
    "export.to_onnx",
    "export.to_tensorrt",
    "search_gateway",
    "search_gateway.healthcheck",
    "training.caption_sheet",
    "training.evaluate",
    "training.model_card",
    "training.packed_data",
    "training.pretrained",
    "training.query_temperature",
    "training.temperature",
    "training.train",
}

# Prints {module: its --help}; one process for all, since importing torch takes seconds.
_HELP_OF_MODULES = """
import contextlib, io, json, runpy, sys
texts = {}
for module in sys.argv[1:]:
    sys.argv = [module, *(["catalog", "build"] if module == "search_gateway" else []), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    texts[module] = out.getvalue()
print(json.dumps(texts))
"""


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def anchors_of(document: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    anchors, seen = set(), Counter[str]()
    in_code = False
    for line in text_of(document).splitlines():
        in_code ^= line.startswith("```")
        heading = None if in_code else re.fullmatch(r"#+ +(.+?)", line)
        if heading:
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "")
            anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
            seen[anchor] += 1
    return anchors


@cache
def documented_commands() -> dict[str, set[str]]:
    """Module of each `python -m MODULE ...` in the documents -> the flags that some document gives it."""
    flags: defaultdict[str, set[str]] = defaultdict(set)
    for document in set(DOCUMENTS) - LOGS:
        text = re.sub(r"\\\n\s*", " ", text_of(document))
        # Inline code may go on in the next line; a command ends with its code, its line or a comment.
        inline = [code.replace("\n", " ") for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
        for line in [*text.splitlines(), *inline]:
            for module, arguments in re.findall(r"-m ([a-z_]+(?:\.[a-z_0-9]+)*)([^#`|]*)", line):
                if module.split(".")[0] in {
                    "benchmarks",
                    "demo",
                    "drawings",
                    "export",
                    "indexing",
                    "search_gateway",
                    "training",
                }:
                    flags[module] |= set(re.findall(r"--[a-z][a-z0-9-]+", arguments))
    return flags


def help_of(modules: list[str]) -> dict[str, str]:
    answer = subprocess.run(
        [sys.executable, "-c", _HELP_OF_MODULES, *modules], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    texts: dict[str, str] = json.loads(answer.stdout)
    return texts


def check_flags(modules: list[str]) -> str:
    """Returns the help of all modules."""
    assert modules
    texts = help_of(modules)
    for module, text in texts.items():
        assert text, f"{module} has no --help"
        for flag in documented_commands()[module]:
            assert flag in text, f"{flag} of {module}"
    return "\n".join(texts.values())


def test_readme_is_short() -> None:
    assert len(text_of(README).splitlines()) <= MAX_README_LINES


def test_configuration_page_is_current() -> None:
    assert text_of(ROOT / "docs" / "configuration.md") == settings_page(), "run `make config-page`"


def test_results_page_is_made_from_the_records() -> None:
    pytest.importorskip("torch", reason="needs the training extra (torch)")
    from benchmarks.results_page import results_page

    assert text_of(ROOT / "docs" / "results.md") == results_page(), "run `make results-page`"


def test_page_has_every_setting_once_in_a_section() -> None:
    rows = [line.split("`")[1] for line in settings_page().splitlines() if line.startswith("| `")]
    assert rows == [variable_of(name) for name in GatewayConfig.model_fields]
    assert settings_page().count("\n## ") == len(SECTIONS)


@pytest.mark.parametrize("document", sorted(set(DOCUMENTS) - LOGS), ids=lambda path: str(path.relative_to(ROOT)))
def test_named_settings_exist(document: Path) -> None:
    named = {name.lower() for name in re.findall(r"CAPTRIEVE_([A-Z][A-Z_]+[A-Z])", text_of(document))}
    others = {"address", "token", "settings", "caption_thumbnails"}  # of the client, `from_env`, and a removed one
    assert named - others <= set(GatewayConfig.model_fields)


def test_file_tree_equals_the_disk() -> None:
    tree = re.findall(r"^    (\w+)/ +\S", text_of(README).split("## Where things are")[1], re.MULTILINE)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    on_disk = sorted({line.split("/")[0] for line in tracked.splitlines() if "/" in line and not line.startswith(".")})
    if not on_disk:
        pytest.skip("not a git checkout")
    assert tree == on_disk


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", sorted(set(DOCUMENTS) - LOGS), ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(document: Path) -> None:
    folders = "benchmarks|captioner|client|demo|docs|drawings|export|indexing|search_api|search_gateway|tests|training"
    names = re.findall(rf"`((?:{folders})/[\w/.]+\.\w+)`", text_of(document))
    # In pages about the gateway, and in its tables of modules, paths start in its package.
    inner = "api|catalog|engine|imaging|kserve|providers|ranking|thumbnails|triton"
    names += [f"search_gateway/{name}" for name in re.findall(rf"`((?:{inner})/[\w/.]+\.py)`", text_of(document))]
    assert not [name for name in names if not (ROOT / name).exists()]


def test_answers_to_where_is_it_name_what_is_there() -> None:
    table = text_of(ROOT / "docs" / "architecture.md").split("## Where is ...?")[1].split("\n## ")[0]
    num_names = 0
    for row in table.splitlines():
        source = ""
        for code in re.findall(r"`([^`]+)`", row):
            if code.endswith(".py"):
                path = ROOT / code if (ROOT / code).exists() else ROOT / "search_gateway" / code
                source = text_of(path)
            elif source and re.fullmatch(r"\w+(\.\w+)?", code):
                missing = [name for name in code.split(".") if not re.search(rf"\b{name}\b", source)]
                assert not missing, f"{code} in {row}"
                num_names += 1
    assert num_names > 10


def test_make_targets_exist() -> None:
    makefile = text_of(ROOT / "Makefile")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:^|[`$] ?|    )make ([a-z-]+)", text_of(document), re.MULTILINE))
        assert named <= targets, document


def test_every_make_target_is_explained() -> None:
    answer = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("demo", "up", "down", "setup", "test", "check", "proto"):
        assert re.search(rf"make {target} +\S", answer)
    assert len({len(re.match(r" +make \S+ +", line)[0]) for line in answer.splitlines()}) == 1, "one column"


def test_every_command_a_reader_needs_is_documented() -> None:
    assert set(documented_commands()) >= DOCUMENTED_MODULES
    for command in README_COMMANDS:
        assert command in text_of(README)


@pytest.mark.parametrize("command", ["search", "caption"])
def test_documented_flags_of_the_client_exist(command: str) -> None:
    arguments = [sys.executable, "-m", "client", command, "--help"]
    help_text = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    documents = [README, ROOT / "client" / "README.md", ROOT / "docs" / "deployment.md"]
    lines = [
        line.partition(f"captrieve {command}")[2]
        for document in documents
        for line in text_of(document).splitlines()
        if f"captrieve {command}" in line
    ]
    assert lines
    for flag in re.findall(r"--[a-z][a-z-]+", " ".join(lines)):
        assert flag in help_text, flag


def test_python_of_the_readme_uses_what_the_client_has() -> None:
    example = re.findall(r"```python\n(.*?)```", text_of(README), re.DOTALL)[0]
    tree = ast.parse(example)
    imported = [name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names]
    assert imported == ["SearchClient", "ServerOverloadedError"]
    assert set(imported) <= set(captrieve_client.__all__)
    calls = {ast.unparse(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    given = {keyword.arg for keyword in calls["search_client.search"].keywords}
    assert given <= {"timeout_seconds"} | SearchOptions.__optional_keys__
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "answer"
    }
    assert used <= {field.name for field in dataclasses.fields(captrieve_client.SearchAnswer)}


def test_documented_flags_of_the_gateway_exist() -> None:
    check_flags([module for module in sorted(documented_commands()) if module.startswith("search_gateway")])


@pytest.mark.torch
def test_documented_flags_of_training_export_and_benchmarks_exist() -> None:
    pytest.importorskip("torch", reason="needs the training extra")
    modules = [module for module in sorted(documented_commands()) if not module.startswith("search_gateway")]
    known = check_flags(modules) + "--nproc-per-node --multi_gpu --num_processes"  # of torchrun and accelerate
    for page in ("training.md", "evaluation.md", "engines.md"):
        flags = re.findall(r"--[a-z][a-z0-9_-]+", re.sub(r"\]\([^)]*\)", "", text_of(ROOT / "docs" / page)))
        assert not [flag for flag in flags if flag not in known], page


def test_no_path_of_one_machine_is_in_the_repository() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    pattern = re.compile(r"(?<![\w.])/(?:work|farm|root)/")
    found = []
    for name in listed.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".json", ".pbtxt", ".proto", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [name] if pattern.search(text.replace(r"(?:work|farm|root)", "")) else []
    assert not found
