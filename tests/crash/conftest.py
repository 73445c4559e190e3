"""Labs to run in; see ``real_runs``."""

from real_runs import each_lab, lab, mortal, reference, tls_lab

__all__ = ["each_lab", "lab", "mortal", "reference", "tls_lab"]
