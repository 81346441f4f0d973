"""README.md and docs/: snippets run, links lead somewhere, tables are what the code says, messages exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastconfig
from fastconfig.methods import RULES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# test_weights_page.py and test_which_call_page.py judge what these give; TensorFlow runs in its own process
ELSEWHERE = ("docs/weights.md", "docs/which_call.md", "docs/tensorflow.md")
SNIPPET = re.compile(r"(?:<!-- needs: (\w+) -->\n)?```python\n(.*?)```", re.DOTALL)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def snippets(page: Path) -> list[tuple[str, str]]:
    """Each snippet, with the package that it needs beside this one."""
    return SNIPPET.findall(text_of(page))


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What pages suppose to be there: a network of a trunk and two heads, losses, and an optimizer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastconfig.methods.RULES", dict(RULES))
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    trunk, heads = network[:2], nn.ModuleList([nn.Linear(5, 1) for _ in range(2)])
    batch = torch.randn(7, 3)

    def losses_of(network: Any, batch: Tensor) -> list[Tensor]:
        y = network(batch)
        return [(y[:, 0] - 1).square().mean(), (y[:, 1] + y[:, 0]).square().mean()]

    def losses_of_one(k: int) -> Any:
        def loss_fn(*given: Any) -> Tensor:  # of a network and a batch, or of a head's output
            if len(given) == 2:
                return losses_of(*given)[k]
            return (given[0] - k).square().mean()

        return loss_fn

    jacobian = torch.randn(3, 20)
    return {
        "torch": torch,
        "fastconfig": fastconfig,
        "network": network,
        "model": network,
        "trunk": trunk,
        "encoder": trunk,
        "heads": heads,
        "decoders": heads,
        "batch": batch,
        "batches": [batch, batch],
        "losses_of": losses_of,
        "losses": losses_of(network, batch),
        "loss_fns": [losses_of_one(k) for k in range(2)],
        "optimizer": torch.optim.SGD([*network.parameters(), *heads.parameters()], lr=1e-3),
        "operator": fastconfig.ConFIGOperator(),
        "scaler": torch.amp.GradScaler("cpu", init_scale=8.0),
        "jacobian": jacobian,
        "grads": list(jacobian),
    }


@pytest.mark.parametrize("page", [page for page in NAMES if page not in ELSEWHERE and snippets(ROOT / page)])
def test_snippets_run(page: str, names: dict[str, Any]) -> None:
    """From the top of the page down, as a reader would type them; each must leave finite gradients."""
    fresh = names["losses_of"]
    for needs, code in snippets(ROOT / page):
        if needs and importlib.util.find_spec(needs) is None:
            continue
        if names.get("losses_of") is fresh:  # a graph is freed by the snippet before
            names["losses"] = fresh(names["network"], names["batch"])
        exec(compile(code, page, "exec"), names)
        for parameter in names["network"].parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), code


@pytest.mark.parametrize("page", NAMES)
def test_links(page: str) -> None:
    text = re.sub(r"```.*?```", "", text_of(ROOT / page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r": (\S+\.md)$", config.partition("\nnav:")[2], re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES[2:])


def test_messages_that_troubleshooting_explains_exist() -> None:
    sources = "\n".join(text_of(path) for path in sorted((ROOT / "fastconfig").rglob("*.py")))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # literals that go on in the next line
    rows = re.findall(r"^\| (.+?) \| ", text_of(DOCS / "troubleshooting.md"), re.MULTILINE)
    fragments = [fragment for row in rows for fragment in re.findall(r"`(.+?)`", row)]
    assert len(fragments) > 30
    assert [fragment for fragment in fragments if fragment not in sources] == []


@pytest.mark.parametrize("script", ["methods_table", "readme_table"])
def test_generated_tables(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module(script)
    if script == "methods_table":
        assert module.documented() == text_of(DOCS / "methods.md")
    else:
        assert module.summarised() == text_of(ROOT / "README.md")


def test_figures_are_small() -> None:
    for figure in (DOCS / "figures").iterdir():
        assert figure.stat().st_size < 150_000
