"""Pack a folder of mergekit's inputs and outputs, one file a recipe, into the two files that the tests read.

    python tests/data/mergekit/pack.py FOLDER

FOLDER holds `recipes.json`, `inputs/*.safetensors` and one `.safetensors` file for each recipe. Beside this script are
then `recipes.json` with what a recipe needs, `inputs.safetensors` with tensors `<file>/<name>` and
`outputs.safetensors` with tensors `<recipe>/<name>`.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

KEPT = ("merge_method", "models", "parameters", "base_model", "dtype", "out_dtype", "error", "seed")


def main(source: Path, target: Path) -> None:
    recipes = json.loads((source / "recipes.json").read_text())
    origin = recipes.pop("_meta")
    inputs = {
        f"{path.stem}/{name}": value
        for path in sorted((source / "inputs").glob("*.safetensors"))
        for name, value in load_file(path).items()
    }
    outputs = {
        f"{recipe}/{name}": value
        for recipe, entry in recipes.items()
        if "file" in entry
        for name, value in load_file(source / entry["file"]).items()
    }
    kept = {
        recipe: {key: entry[key] for key in KEPT if entry.get(key) is not None} for recipe, entry in recipes.items()
    }
    save_file(inputs, target / "inputs.safetensors")
    save_file(
        outputs, target / "outputs.safetensors", metadata={"mergekit": origin["mergekit"], "torch": origin["torch"]}
    )
    (target / "recipes.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
