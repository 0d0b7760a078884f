"""Write models/weights/hub.csv from timm's own configurations: python -m tests.reference.hub_table

Run it after a model is registered under one of timm's names, or for a newer timm.
"""

import csv
import io
import sys
from pathlib import Path

import models.weights.table as table
from models.compare import libraries
from models.registry import registered

LABELS = (0, 1000, 11821, 21841, 21843)  # no classifier, and ImageNet-1k, -12k, -22k, -21k; not CLIP's embeddings


def configurations():
    """(name, timm's configuration) of each published file for a model of this project, each model's default first."""
    timm = libraries.load("timm").models
    for model in filter(timm.is_model, sorted(registered())):
        for name, config in timm.get_arch_pretrained_cfgs(model).items():
            if config.hf_hub_id and config.num_classes in LABELS:
                yield name, config


def text() -> str:
    """The content of hub.csv."""
    file = io.StringIO()
    writer = csv.DictWriter(file, table.COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name, config in configurations():
        values = {key: getattr(config, key) for key in table.COLUMNS[1:]}
        writer.writerow(
            {"name": name}
            | {key: " ".join(map(str, x)) if isinstance(x, tuple) else x for key, x in values.items()}
            | {"license": config.license or "unknown"}
        )
    return file.getvalue()


if __name__ == "__main__":
    Path(table.__file__).with_name("hub.csv").write_text(text())
    sys.exit(0)
