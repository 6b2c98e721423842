"""Train on a song and separate it: `python train.py song=take_on_me aug=heavy`. See README.md, or --help."""

import sys

import hydra
from omegaconf import DictConfig

from bespoke import run
from bespoke.launch import launch, quieten


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    quieten()  # here too: a launcher may run this in a process of its own
    return run.train(cfg)


if __name__ == "__main__":
    sys.exit(launch(main))
