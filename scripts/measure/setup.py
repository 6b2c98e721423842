"""Objects of a training step, made from a command line's config without a run."""

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from bespoke.cli.train import compose
from bespoke.data.song import Song
from bespoke.data.stream import MixStream


def config(*overrides: str) -> DictConfig:
    """The config of train.py with these overrides."""
    return compose(overrides)


def stream(cfg: DictConfig) -> MixStream:
    """The stream of training mixes of a config, for recipes without a first estimate."""
    song = Song.load(OmegaConf.to_container(cfg.song, resolve=True))
    background = instantiate(cfg.background)(song, cfg.data.sample_rate)
    policy = instantiate(cfg.aug, _convert_="all")
    targets = song.render_target(cfg.data.sample_rate)
    return MixStream(
        targets,
        background,
        policy,
        cfg.data.sample_rate,
        cfg.data.segment_seconds,
        cfg.data.batch_size,
    )
