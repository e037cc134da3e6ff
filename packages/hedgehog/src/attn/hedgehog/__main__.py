"""The command line: ``python -m attn.hedgehog {fit,validate,test,predict} --config CONFIG``."""

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningCLI


def main(args: ArgsType = None) -> None:
    """Train or evaluate as a configuration says; see the examples in ``configs``.

    Args:
        args: the arguments; None is those of the process.
    """
    LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        args=args,
    )


if __name__ == "__main__":
    main()
