"""What is minimised: objectives behind one small interface (see `base`), SwAV first."""
