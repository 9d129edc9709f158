"""PIRL (Misra and van der Maaten 2020, arXiv 1912.01991)."""
