"""``python -m seer_pipe``, for torchrun."""

from seer_pipe.cli import main

if __name__ == "__main__":
    main()
