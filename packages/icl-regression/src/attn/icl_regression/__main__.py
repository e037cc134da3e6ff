"""The command line: ``python -m attn.icl_regression {fit,validate,test} --config CONFIG``."""

from lightning.pytorch.cli import ArgsType, LightningCLI

from attn.icl_regression.training import ICLTraining, PromptData


def main(args: ArgsType = None) -> None:
    """Train or evaluate as a configuration says; the paper's are in ``configs``.

    Args:
        args: the arguments; None is those of the process.
    """
    LightningCLI(ICLTraining, PromptData, seed_everything_default=1029, args=args)


if __name__ == "__main__":
    main()
