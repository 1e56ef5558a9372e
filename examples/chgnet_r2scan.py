"""Between two published models of atoms: CHGNet 0.3.0 and its child, which was finetuned to a better theory.

CHGNet foretells the energy of a crystal and the forces on its atoms. Its wheel ships the parent, learned from GGA
calculations, and the child, finetuned on r2SCAN calculations. The study asks how far the models between them are from
the answers of each, on crystals with shaken atoms: mean absolute errors of forces, of the energy, and of what in it the
network adds to the elements' own (bonding); and 1 - the error of forces as a share of these (agreement). It also asks
how well they foretell lattice constants that were measured. It takes about a minute.

    pip install 'unival-merge[chgnet]'
    unival-merge study run examples/chgnet_r2scan.py chgnet-study

or `python examples/chgnet_r2scan.py`, which prints the summary.
"""

from functools import cache, partial
from pathlib import Path

import chgnet
import numpy as np
import torch
from chgnet.model import CHGNet
from pymatgen.core import Lattice, Structure

import experiments

VERSIONS = {"parent": "0.3.0", "child": "r2scan"}
FILES = {one: next(Path(chgnet.__file__).parent.glob(f"pretrained/{name}/*.tar")) for one, name in VERSIONS.items()}
UNITS = {"forces": "eV/Å", "energy": "eV/atom", "bonding": "eV/atom"}
KINDS = {"rock": ("Fm-3m", 1 / 2), "zinc": ("F-43m", 1 / 4), "fcc": ("Fm-3m", 0), "bcc": ("Im-3m", 0)}
CRYSTALS = """val rock Na Cl 5.640, Mg O 4.212, Li F 4.027, K Br 6.600; val zinc Ga As 5.653, Zn S 5.409, Si Si 5.431;
    test rock Li Cl 5.140, Na F 4.634, K Cl 6.293, Ca O 4.811, Sr O 5.160;
    test zinc Ga P 5.451, In P 5.869, Zn Se 5.668, Cd Te 6.482, Al As 5.661, C C 3.567, Ge Ge 5.658;
    metals fcc Cu 3.615, Ag 4.086, Au 4.078, Al 4.050, Ni 3.524, Pd 3.891, Pt 3.924;
    metals bcc W 3.165, Mo 3.147, Nb 3.301, V 3.024, Ta 3.303"""  # lattice constants at room temperature, in Å
SIZES = np.linspace(0.95, 1.07, 9)  # where the least energy is looked for


def make_model(version: str = "0.3.0") -> CHGNet:
    return CHGNet.load(model_name=version, use_device="cpu", verbose=False)


@cache
def crystals(split: str) -> tuple[list, list]:
    """Return the graphs of a split's crystals: with their atoms shaken by 0.1 Å, and as they are, at several sizes."""
    convert, random, shaken, sizes = make_model().graph_converter, np.random.default_rng(0), [], []
    for own, kind, told in (group.split(maxsplit=2) for group in CRYSTALS.split(";")):
        for *elements, size in map(str.split, told.split(",") if own == split else []):
            places = [[place] * 3 for place in (0, KINDS[kind][1])][: len(elements)]
            cell = Structure.from_spacegroup(KINDS[kind][0], Lattice.cubic(float(size)), elements, places)
            moved = cell.frac_coords + random.normal(0, 0.1, (len(cell), 3)) / float(size)
            shaken.append(convert(Structure(cell.lattice, cell.species, moved)))
            one = cell.get_primitive_structure()
            sizes.append([convert(Structure(one.lattice.matrix * s, one.species, one.frac_coords)) for s in SIZES])
    return shaken, sizes


def answers(model: CHGNet, split: str) -> dict[str, list[torch.Tensor]]:
    """Return by crystal the forces (atoms, 3), the energy per atom, and what of it is no element's own."""
    shaken, _ = crystals(split)
    with torch.enable_grad():  # forces are a gradient
        found = model(shaken, task="ef")
    return {"forces": found["f"], "energy": found["e"], "bonding": found["e"] - model.composition_model(shaken)}


right = cache(lambda name, split: answers(make_model(VERSIONS[name]), split))


def distance(name: str, model: CHGNet, split: str) -> dict[str, list[float]]:
    """Return the errors of a model per crystal, where the parent or the child is right, and the agreement of forces."""
    pairs = {what: [*zip(own, right(name, split)[what], strict=True)] for what, own in answers(model, split).items()}
    found = {what: [(a - b).abs().mean().item() for a, b in own] for what, own in pairs.items()}
    return {"agreement": [1 - ((a - b).abs().sum() / b.abs().sum()).item() for a, b in pairs["forces"]], **found}


def lattice(model: CHGNet, split: str) -> list[float]:
    """Return by how many percent the size of least energy is off the measured one, per crystal."""
    fine = np.linspace(SIZES[0], SIZES[-1], 2001)
    energies = [model(sizes, task="e")["e"].numpy() for sizes in crystals(split)[1]]
    return [100 * abs(fine[np.polynomial.Polynomial.fit(SIZES, own, 4)(fine).argmin()] - 1) for own in energies]


lower = {"unit": {**UNITS, "size": "%"}, "higher_is_better": dict.fromkeys([*UNITS, "size"], False)}
study = experiments.Study(
    "chgnet",
    make_model,
    experts=FILES,
    tasks={name: experiments.Task(partial(distance, name), metric="agreement", **lower) for name in VERSIONS}
    | {"lattice": experiments.Task(lattice, expert="child", metric="size", **lower)},
    splits=("val", "test", "metals"),
    question="What lies between a published model of atoms and its child, finetuned to another theory?",
    source="CHGNet (Deng et al. 2023) and its r2SCAN child (Huang et al. 2025)",
)

if __name__ == "__main__":
    kept = experiments.run(study, "chgnet-study").summary()
    print(kept[["mixture", "task", "split", "method", "point", "retention", "lo", "hi"]].to_string(index=False))
