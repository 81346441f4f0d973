"""Imports run one way: no circles, kernels know nothing above them, and few modules stand at the top."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastconfig"
#: rooms from the ground up: a module imports from its own and from those before it; above, in any order
ORDER = (
    *(
        "methods",
        "numbers",
        "transforms",
        "checks",
        "showing",
        "methods.base",
        "gradients",
        "ranks",
        "network",
    ),
    *("momentum.clock", "momentum.step", "backends", "merging", "utils"),
    *("length_model", "weight_model", "reference", "methods.*"),
)


def imported(path: Path) -> set[str]:
    """Modules of this package that one imports when it is imported itself, in dotted names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ("fastconfig", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
        names = [".".join([*base, alias.name]) for alias in node.names]
        found |= {name.replace("..", ".") for name in (*names, ".".join(base).rstrip("."))}
    return found


def modules() -> dict[str, set[str]]:
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
        if "kernels" not in path.parts
    }
    return {name: {used for used in imported(path) if used in paths} - {name} for name, path in paths.items()}


def test_no_circles() -> None:
    """A package that imports its own parts is no circle; those parts then import each other only."""
    graph, done = modules(), set[str]()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name in done:
            return
        for used in graph[name]:
            if not name.startswith(f"{used}."):
                visit(used, (*way, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_imports_run_downwards() -> None:
    def level(name: str) -> int:
        inside = name.removeprefix("fastconfig.")
        room = inside.partition(".")[0]
        found = [key for key in (inside, f"{room}.*", room) if key in ORDER]
        return ORDER.index(found[0]) if found else len(ORDER)

    for name, used in modules().items():
        assert not {above for above in used - {"fastconfig"} if level(above) > level(name)}, name


def test_kernels_import_nothing_above() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2, path
                assert not (node.module or "").startswith("fastconfig"), path


def test_few_modules_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 24
