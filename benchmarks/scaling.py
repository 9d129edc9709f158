"""What a step sends and how long that takes beside its arithmetic, on paper: Markdown tables for docs/scaling.md.

    python benchmarks/scaling.py

Bytes and calls are `seer_pipe.train.traffic`'s, which tests hold against the collectives of real ranks. Speeds are
assumptions, printed with the table.
"""

from pathlib import Path

from seer_pipe import config as settings
from seer_pipe.recipes import load_recipe
from seer_pipe.train.doctor import estimate_memory, training_flops
from seer_pipe.train.traffic import Collectives, traffic

NODE = 8
WITHIN, BETWEEN = 400e9, 45e9  # bytes a second that a GPU sends: to its node (NVLink 4), to others (400 Gb/s a GPU)
WAIT_WITHIN, WAIT_BETWEEN = 20e-6, 60e-6  # seconds that a small collective takes, over a node and over more
FLOPS = 250e12  # a GPU's, of the model: the middle of 200 and 300
IMAGES = 32  # a GPU and step
RECIPES = ("regnety_16gf", "seer_regnety_32gf", "seer_regnety_128gf", "seer_10b")
MODES = {
    "DDP": ["train.parallel=ddp"],
    "FSDP2": [],
    "HSDP": ["train.shard_within=8"],
    "HSDP, BatchNorm by 64": ["train.shard_within=8", "train.sync_bn=64"],
}
IN_BACKGROUND = ("weights", "gradients", "gradients across groups")  # the rest is waited for


def main() -> None:
    print(f"A GPU has {IMAGES} images a step ({IMAGES // 2} for the 10B) and does {FLOPS / 1e12:g} TFLOP/s. It sends "
          f"{WITHIN / 1e9:g} GB/s within its node of {NODE} and {BETWEEN / 1e9:g} GB/s beyond; a small collective "
          f"takes {WAIT_WITHIN * 1e6:g} and {WAIT_BETWEEN * 1e6:g} µs.\n")  # fmt: skip
    print("| trunk | | GPUs | weights gathered GB | gradients scattered GB | gradients reduced GB | BatchNorm GB "
          "| Sinkhorn MB | norms kB | arithmetic ms | weights and gradients ms | small calls | small calls ms "
          "| memory GB |")  # fmt: skip
    print("|---|---|" + "---:|" * 12)
    for name in RECIPES:
        for mode, chosen in MODES.items():
            for gpus in (8, 64, 512):
                if gpus > {"HSDP": NODE, "HSDP, BatchNorm by 64": 64}.get(mode, 0):
                    print(row(name, mode, chosen, gpus))


def row(name: str, mode: str, chosen: list[str], gpus: int) -> str:
    images = IMAGES // 2 if name == "seer_10b" else IMAGES
    changes = [f"train.batch={images * gpus}", "objective.allow_empty_prototypes=true", "train.sync_bn=true", *chosen]
    config = load_recipe(Path(name), changes)
    found = traffic(config, gpus)
    large = [some for some in found if some.part in IN_BACKGROUND]
    small = [some for some in found if some not in large]
    arithmetic = recomputed(config) * images * training_flops(config) / FLOPS

    def sent(part: str, kind: str = "", unit: float = 1e9) -> str:
        return f"{sum(one.sent for one in found if one.part.startswith(part) and kind in one.kind) / unit:.3g}"

    figures = [
        sent("weights"), sent("gradients", "reduce_scatter"), sent("gradients", "all_reduce"), sent("BatchNorm"),
        sent("Sinkhorn", unit=1e6), sent("norms", unit=1e3), f"{1e3 * arithmetic:.0f}",
        f"{1e3 * sum(map(seconds, large)):.0f}", f"{sum(some.calls for some in small)}",
        f"{1e3 * sum(map(seconds, small)):.0f}", f"{estimate_memory(config, gpus)['total']:.0f}",
    ]  # fmt: skip
    return f"| {config.model.name} | {mode} | {gpus} | " + " | ".join(figures) + " |"


def recomputed(config: settings.Config) -> float:
    """Arithmetic of a step in that of one without recomputation: four passes in place of three."""
    return 4 / 3 if config.train.activation_checkpointing else 1.0


def seconds(some: Collectives) -> float:
    """Rings of more than a node go at the speed of the link between nodes, and so do those across groups."""
    within = some.ranks <= NODE and some.part != "gradients across groups"
    rate, wait = (WITHIN, WAIT_WITHIN) if within else (BETWEEN, WAIT_BETWEEN)
    return some.sent / rate + some.calls * wait


if __name__ == "__main__":
    main()
