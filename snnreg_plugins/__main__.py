"""``python -m snnreg_plugins`` is ``snnreg``."""

from snnreg_plugins.cli import main

if __name__ == "__main__":
    main()
