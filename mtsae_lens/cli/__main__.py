"""Run the command line as `python -m mtsae_lens.cli`, for environments in which the script `mtsae` is not on the path."""

from mtsae_lens.cli import main

if __name__ == "__main__":
    main()
