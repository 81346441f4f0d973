"""Machine code of CUDA kernels, as nvdisasm prints it, and what can happen along its branches."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_LINE = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(.*?)\s*;")
_TYPES = {"f": 4, "d": 8, "6__half": 2, "13__nv_bfloat16": 2}
_NUMBER = r"L(?:i|NS_6WeightE)(\d+)E"  # of a template's parameters
_WIDTHS = {"128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}


def tool() -> Path | None:
    """nvdisasm, of Triton's package or of the CUDA toolkit."""
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        found = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        if found.exists():
            return found
    path = shutil.which("nvdisasm")
    return None if path is None else Path(path)


@dataclass(frozen=True)
class Instruction:
    """One of them.

    Attributes:
        text: as it is printed, with its predicate.
    """

    text: str

    @cached_property
    def operation(self) -> str:
        """LDG.E.128, say."""
        return re.sub(r"^@\S+ +", "", self.text).split(" ")[0]

    @cached_property
    def operands(self) -> list[str]:
        return re.sub(r"^(@\S+ +)?\S+ *", "", self.text).split(", ")

    @property
    def always(self) -> bool:
        """Whether it has no predicate."""
        return not self.text.startswith("@")

    @cached_property
    def registers(self) -> set[int]:
        return {int(number) for number in re.findall(r"\bR(\d+)", self.text)}

    @property
    def targets(self) -> list[str]:
        """Labels that it may jump to."""
        return re.findall(r"\.L_\w+", self.text)

    @property
    def width(self) -> int:
        """Bits that a load reads."""
        return next((bits for part, bits in _WIDTHS.items() if f".{part}" in f"{self.operation}."), 32)

    @property
    def loaded(self) -> frozenset[int]:
        """Registers that a load writes."""
        first = int(self.operands[0].removeprefix("R"))
        return frozenset(range(first, first + max(self.width // 32, 1)))


@dataclass(frozen=True)
class Function:
    """A kernel, or a function that it calls.

    Attributes:
        name: as the linker knows it.
        code: its instructions.
        labels: numbers of the instructions that they stand before.
    """

    name: str
    code: list[Instruction]
    labels: dict[str, int]

    def following(self, k: int) -> Iterator[int]:
        """What may come after an instruction; calls return."""
        at = self.code[k]
        kind = at.operation.split(".")[0]
        jumps = kind in ("BRA", "BRX", "JMP")
        if jumps:
            yield from (self.labels[target] for target in at.targets)
        stays = kind in ("EXIT", "RET") or (jumps and len(at.operands) == 1)
        if not (stays and at.always) and k + 1 < len(self.code):
            yield k + 1

    def count(self, operation: str) -> int:
        return sum(at.operation == operation for at in self.code)

    def together(self, chosen: Callable[[Instruction], bool]) -> int:
        """The most chosen loads that are issued before anything touches what one of them loads."""
        return max((len(on_way) for on_way in self._on_their_way(chosen)), default=0)

    def _on_their_way(self, chosen: Callable[[Instruction], bool]) -> Iterator[frozenset[frozenset[int]]]:
        before: list[frozenset[frozenset[int]] | None] = [None] * len(self.code)
        before[0] = frozenset()
        waiting = [0]
        while waiting:
            k = waiting.pop()
            at, after = self.code[k], before[k]
            assert after is not None
            if after and any(at.registers & loaded for loaded in after):
                after = frozenset()  # it waits, and with it the rest of the warp
            if at.operation.startswith("LDG") and chosen(at):
                after |= {at.loaded}
            yield after
            for then in self.following(k):
                known = before[then]
                if known is None or len(after) > len(known):
                    before[then] = after
                    waiting.append(then)


@dataclass(frozen=True)
class Kernel:
    """A kernel of a template.

    Attributes:
        name: of the template.
        size: bytes of an element; 0 where no type is a parameter.
        numbers: the other parameters, the last of them a Weight of csrc/rules.hpp where there is a stage.
        body: the kernel itself.
        called: functions that it calls.
    """

    name: str
    size: int
    numbers: tuple[int, ...]
    body: Function
    called: list[Function]

    def __str__(self) -> str:
        return f"{self.name}<{', '.join(map(str, (self.size, *self.numbers)))}>"


def kernels(cubin: Path) -> list[Kernel]:
    """All kernels of a file."""
    found = tool()
    assert found is not None
    printed = subprocess.run([found, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    sections = re.split(r"^\t\.section\t\.text\.", printed, flags=re.MULTILINE)[1:]
    return [_kernel(section) for section in sections]


def _kernel(section: str) -> Kernel:
    body, *called = map(_function, re.split(r"^ +\.type +", section, flags=re.MULTILINE)[1:])
    template = re.search(rf"\d([a-z][a-z_]*)(?:I({'|'.join(_TYPES)})?((?:{_NUMBER})*)E)?E[vPN]", body.name)
    assert template is not None, body.name
    name, kind, numbers, _ = template.groups()
    parameters = tuple(map(int, re.findall(_NUMBER, numbers or "")))
    return Kernel(name, _TYPES.get(kind, 0), parameters, body, called)


def _function(text: str) -> Function:
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"(\S+):$", line):
            labels[label[1]] = len(code)
        elif instruction := _LINE.match(line):
            code.append(Instruction(instruction[1]))
    return Function(text.partition(",")[0], code, labels)
