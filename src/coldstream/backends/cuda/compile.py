"""Every variant -> machine code for each kind of GPU, and a manifest that says what is in which file.

    python -m coldstream.backends.cuda.compile OUT [--arch 89]

Needs Triton and no GPU. An image is built with it, so that nothing is compiled in a container.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from coldstream.backends.cuda.variants import KernelVariant, every_variant

ARCHITECTURES = (80, 89, 90, 120)
MANIFEST = "manifest.json"


def choose_assembler() -> None:
    """Have Triton assemble with CUDA 12's ptxas, which it brings along: code of CUDA 13 runs on no driver of 12.

    Raises:
        FileNotFoundError: this Triton has none.
    """
    import triton

    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    if not ptxas.is_file():
        raise FileNotFoundError(f"{ptxas} is not there; take a Triton that brings CUDA 12's ptxas, as 3.9 does")
    os.environ["TRITON_PTXAS_PATH"] = os.environ["TRITON_PTXAS_BLACKWELL_PATH"] = str(ptxas)
    # Lines of the source are of no use where it is not, and a third of the code's size.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"


def compiled(variant: KernelVariant, arch: int) -> Any:
    """Triton's compiled kernel: `asm["cubin"]`, `asm["ptx"]`, `metadata`. Pointers are taken to be multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from coldstream.backends.cuda import kernels

    function = getattr(kernels, variant.kernel)
    constants = dict(variant.constants)
    named = [name for name in function.arg_names if name not in constants]
    signature = {name: kind.partition(":")[0] for name, kind in zip(named, variant.types, strict=True)}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = [place for place, kind in enumerate(variant.types) if kind.startswith("*") or kind.endswith(":16")]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs=constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def compile_all(
    folder: Path, architectures: Iterable[int] = ARCHITECTURES, variants: Iterable[KernelVariant] | None = None
) -> int:
    """Write `sm_NN/NAME.cubin` for all of them, and the manifest; the bytes of it all."""
    choose_assembler()
    chosen = list(every_variant() if variants is None else variants)
    entries: dict[str, dict[str, Any]] = {}
    total = 0
    for arch in architectures:
        place = folder / f"sm_{arch}"
        place.mkdir(parents=True, exist_ok=True)
        for variant in chosen:
            made = compiled(variant, arch)
            (place / f"{variant.name}.cubin").write_bytes(made.asm["cubin"])
            total += len(made.asm["cubin"])
            entries[f"sm_{arch}/{variant.name}"] = {
                "function": made.metadata.name,
                "types": list(variant.types),
                "shared": made.metadata.shared,
                "threads": 32 * variant.warps,
                "scratch": made.asm["ptx"].split(".entry")[1].split(")")[0].count(".param") - len(variant.types),
            }
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1, sort_keys=True))
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arch", type=int, action="append", choices=ARCHITECTURES, help="one of these; all without it")
    given = parser.parse_args(arguments)
    total = compile_all(given.out, given.arch or ARCHITECTURES)
    print(f"{total / 1e6:.1f} MB of machine code in {given.out}")


if __name__ == "__main__":
    main()
