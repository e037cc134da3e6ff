"""``python -m attn.shared_eval.claims``."""

import sys

if __name__ == "__main__":  # worker processes import this module again and need none of it
    from attn.shared_eval.claims.commands import main

    sys.exit(main())
